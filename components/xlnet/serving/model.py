"""The classifier that a server serves."""

from pathlib import Path
from typing import Any

from xlnet.evaluation.predict import predict
from xlnet.evaluation.predictor import Predictor
from xlnet.model.config import is_language_model
from xlnet.serving.language import LanguageModel
from xlnet.serving.requests import MAX_TEXTS, Text, fields_of


class ServedModel:
    """An open classifier, with the name under which it is served."""

    def __init__(self, directory: Path, name: str, precision: str = "auto") -> None:
        self.name = name
        self.predictor = Predictor(directory, precision)
        config = self.predictor.model.config
        self.facts: dict[str, Any] = {"name": name, "task": config.task, "classes": list(config.classes)}
        self.limits = {"instances": MAX_TEXTS}

    def warm_up(self) -> None:
        """Predict a text, so that the first client does not wait for one-time work."""
        self.answers([("ready?", "yes?" if self.predictor.pairs else None)])

    def check_instance(self, instance: object) -> Text:
        """Check an instance, which is a text or an object with a text and its pair; BadValue if it cannot be used."""
        return self.predictor.check(*fields_of(instance))

    def answers(self, texts: list[Any]) -> list[dict[str, Any]]:
        """Return one record per text, like ``predict``."""
        return list(predict(self.predictor, texts))


def open_model(directory: Path, name: str, precision: str = "auto") -> ServedModel | LanguageModel:
    """Open a classifier or a language model.

    Raises:
        UserError: the directory has neither, or the model cannot be used with this precision.
    """
    kind = LanguageModel if is_language_model(directory) else ServedModel
    return kind(directory, name, precision)
