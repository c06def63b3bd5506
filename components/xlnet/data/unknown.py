"""Measures the share of text that the vocabulary does not know: a model learns nothing from ``<unk>``."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from xlnet.data.tokenizer import Tokenizer
from xlnet.errors import UserError
from xlnet.recipe import DataRecipe

WARN_SHARE, REFUSE_SHARE = 0.02, 0.20  # of the tokens
CHECKED_TOKENS = 4096  # of a text that is looked at before a run


@dataclass
class Unknown:
    """The counts of one split."""

    rows: int = 0
    tokens: int = 0  # without <sep> and <cls>
    unknown_tokens: int = 0
    unknown_rows: int = 0  # with nothing but unknown tokens

    @property
    def share(self) -> float:
        """The share of unknown tokens."""
        return self.unknown_tokens / max(1, self.tokens)

    def add(self, flat_ids: np.ndarray, lengths: np.ndarray, tokenizer: Tokenizer) -> None:
        """Count a batch, given its rows' concatenated token ids and the number of tokens per row."""
        is_unknown = flat_ids == tokenizer.special_ids["unk"]
        silent = is_unknown | np.isin(flat_ids, [*tokenizer.special_ids.values(), tokenizer.space_id])
        starts = np.cumsum(lengths) - lengths
        unknown_tokens = np.add.reduceat(is_unknown, starts, dtype=np.int64)
        ends = np.isin(flat_ids, [tokenizer.special_ids["sep"], tokenizer.special_ids["cls"]])
        self.rows += len(lengths)
        self.tokens += int((~ends).sum())
        self.unknown_tokens += int(unknown_tokens.sum())
        self.unknown_rows += int((np.logical_and.reduceat(silent, starts) & (unknown_tokens > 0)).sum())

    def merge(self, other: "Unknown") -> None:
        """Add the counts of other rows."""
        for name in Unknown.__annotations__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def of_texts(texts: list[str], tokenizer: Tokenizer) -> Unknown:
    """Count what the vocabulary does not know in some texts."""
    found = Unknown()
    if texts:
        ids = tokenizer.encode(texts, None, CHECKED_TOKENS).input_ids
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        found.add(np.concatenate([np.array(one, np.int64) for one in ids]), lengths, tokenizer)
    return found


def remark(splits: Mapping[str, Unknown], recipe: DataRecipe) -> str:
    """Return a warning about splits with much unknown text; empty if there are none.

    Raises:
        UserError: so much of the text is unknown that a training would be useless.
    """
    whole = Unknown()
    for split in splits.values():
        whole.merge(split)
    if whole.share > REFUSE_SHARE:
        raise UserError(f"{_spell(whole)}: {_remedy(recipe)}")
    high = [f"{name}: {_spell(split)}" for name, split in splits.items() if split.share > WARN_SHARE]
    return f"{'; '.join(high)}; a model learns nothing from them: {_remedy(recipe)}" if high else ""


def _spell(counted: Unknown) -> str:
    text = f"{100 * counted.share:.0f} % of the tokens are <unk>"
    if counted.unknown_rows:
        text += f", and {100 * counted.unknown_rows / counted.rows:.0f} % of the rows hold nothing else"
    return text


def _remedy(recipe: DataRecipe) -> str:
    if recipe.tokenizer != "train":
        return (
            f"the vocabulary '{recipe.tokenizer}' was not made for this text; learn one from it with "
            'data.tokenizer = "train"'
        )
    remedy = f"raise data.vocab_size above {recipe.vocab_size}" if recipe.vocab_size else "add rows of this kind to it"
    return f'data.tokenizer = "train" learnt too few of their characters from data.train; {remedy}'
