"""Opens a model directory and computes logits of texts with the model's own tokenizer."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from xlnet import recipe as recipes
from xlnet.data.batches import Unlabelled
from xlnet.data.tokenizer import Tokenizer, load_tokenizer, refuse_misfit
from xlnet.data.values import BadValue, check_pair, check_text

LONGEST = 8192  # maximum tokens of a row if neither recipe nor directory names one: the tokens of one batch


@dataclass(frozen=True)
class Predictor:
    """An open model directory, written by this project or by ``transformers``."""

    directory: Path
    precision: str = "auto"  # number type of matrix products, see :func:`xlnet.model.precision.choose`

    @cached_property
    def model(self) -> Any:
        """The classifier, prepared for prediction."""
        from xlnet.model.config import tokenizer_digest
        from xlnet.model.precision import choose
        from xlnet.model.prepared import PreparedClassifier
        from xlnet.model.weights import load_classifier

        precision = choose(self.precision)
        model = load_classifier(self.directory)
        trained_with = tokenizer_digest(self.directory)
        refuse_misfit(self.directory, self.tokenizer, model.config.vocab_size, True, trained_with)
        return PreparedClassifier(model, precision)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        return load_tokenizer(self.directory)

    @cached_property
    def recipe(self) -> recipes.DataRecipe:
        """The settings with which the training data was read; defaults if the directory has no recipe."""
        return recipes.of_artifact(self.directory).data if self.ours else recipes.DataRecipe()

    @property
    def ours(self) -> bool:
        """Whether the directory is a model artifact of this project."""
        return (self.directory / "recipe.json").is_file()

    @property
    def pairs(self) -> bool | None:
        """Whether the model reads pairs of texts; None if it is unknown, and then both are accepted."""
        return self.recipe.text_pair is not None if self.ours else None

    @property
    def max_length(self) -> int:
        """Maximum tokens of a row: the recipe's limit, else the directory's, else LONGEST."""
        if self.ours:
            return self.recipe.max_length
        return self.tokenizer.settings.max_length or LONGEST

    def check(self, text: object, pair: object) -> tuple[str, str | None]:
        """Check a text and its pair for this model, and return them. Command line and server both use this check.

        Raises:
            BadValue: one of them is not text, or the model needs a pair and there is none, or the reverse.
        """
        checked = check_text(text), None if pair is None else check_pair(pair)
        if reason := self.pairing(pair is not None):
            raise BadValue(reason)
        return checked

    def pairing(self, has_pair: bool) -> str:
        """Return why the model cannot take a text with or without a pair, or an empty text if it can."""
        if self.pairs is True and not has_pair:
            return "no text_pair, and this model reads pairs of texts"
        if self.pairs is False and has_pair:
            return "a text_pair, and this model reads single texts"
        return ""

    def logits(self, texts: list[str], pairs: list[str | None] | None) -> tuple[np.ndarray, list[bool]]:
        """Return the logits of texts in their order, float32 [rows, C], and which texts were truncated.

        One list may mix texts with and without pairs.
        """
        given = pairs or [None] * len(texts)
        logits = np.empty((len(texts), self.model.config.outputs), np.float32)
        cut = [False] * len(texts)
        for paired in (False, True):
            places = [place for place, pair in enumerate(given) if (pair is not None) is paired]
            if places:
                found, found_cut = self._alike([texts[i] for i in places], [given[i] for i in places])
                logits[places] = found
                for place, one in zip(places, found_cut, strict=True):
                    cut[place] = one
        return logits, cut

    def _alike(self, texts: list[str], pairs: list[str | None]) -> tuple[np.ndarray, list[bool]]:
        from xlnet.model.inference import predict_logits

        encoded = self.tokenizer.encode(texts, pairs, self.max_length)
        segments = self.ours or self.tokenizer.settings.segments
        return predict_logits(self.model, Unlabelled(encoded), segments=segments), encoded.truncated


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Independent probability of each output, in float64."""
    return np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))
