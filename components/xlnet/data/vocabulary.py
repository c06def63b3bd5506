"""Makes a dataset's tokenizer: learns its vocabulary from the rows that are trained on, or copies another."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from xlnet.data.readers import Row
from xlnet.data.remarks import say
from xlnet.data.survey import TRAIN, Survey
from xlnet.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from xlnet.data.unigram import TRAINING_SENTENCES


def make_tokenizer(directory: Path, survey: Survey, splits: np.ndarray) -> Tokenizer:
    """The dataset's tokenizer, in ``tokenizer/`` below ``directory``: learnt from the train rows, or copied.

    Raises:
        UserError: there is none, or the text does not support the vocabulary that was asked for.
    """
    recipe = survey.recipe
    folder = directory / "tokenizer"
    if recipe.tokenizer == "train":
        size = f"{recipe.vocab_size:,}" if recipe.vocab_size else "as many"
        say(f"training a vocabulary of {size} tokens{'' if recipe.vocab_size else ' as the text supports'}")
        # Every k-th row, so that a sample of bounded size covers the whole input.
        every = -(-int((splits == TRAIN).sum()) // TRAINING_SENTENCES)
        rows = (row for row, _, split in rows_with_a_split(survey, splits) if split == TRAIN)
        texts = (text for row in itertools.islice(rows, 0, None, every) for text in (row.text, row.text_pair) if text)
        train_tokenizer(texts, recipe.vocab_size, folder).save(folder)
    else:
        load_tokenizer(recipe.tokenizer).save(folder)
    return load_tokenizer(folder)


def rows_with_a_split(survey: Survey, splits: np.ndarray) -> Iterator[tuple[Row, int, int]]:
    """Yield every row that has a split, in reading order, as (row, index of its file, split)."""
    for (row, number), split in zip(survey.rows(), memoryview(splits.data), strict=True):
        if split >= 0:
            yield row, number, split
