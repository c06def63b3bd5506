"""A model directory opened for use: texts in, logits out, with the tokens the model was trained on."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from xlnet import recipe as recipes
from xlnet.data.batches import Unlabelled
from xlnet.data.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Predictor:
    """A model directory, opened once."""

    directory: Path

    @cached_property
    def model(self) -> Any:
        """The classifier, in evaluation mode."""
        from xlnet.model.weights import load_classifier

        return load_classifier(self.directory)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary the model was trained with."""
        return load_tokenizer(self.directory)

    @cached_property
    def recipe(self) -> recipes.DataRecipe:
        """How the model's training data was read; defaults for a directory that does not say."""
        known = (self.directory / "recipe.json").is_file()
        return recipes.of_artifact(self.directory).data if known else recipes.DataRecipe()

    def logits(self, texts: list[str], pairs: list[str | None] | None) -> tuple[np.ndarray, list[bool]]:
        """Logits of texts in their order, float32 [rows, C], and which of them were cut."""
        from xlnet.model.inference import predict_logits

        encoded = self.tokenizer.encode(texts, pairs, self.recipe.max_length)
        return predict_logits(self.model, Unlabelled(encoded)), encoded.truncated


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
