"""The model that a server serves."""

from pathlib import Path
from typing import Any

from xlnet.evaluation.predict import predict
from xlnet.evaluation.predictor import Predictor
from xlnet.serving.requests import Text


class ServedModel:
    """An open model directory, with the name under which it is served."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.predictor = Predictor(directory)
        config = self.predictor.model.config
        self.facts: dict[str, Any] = {"name": name, "task": config.task, "classes": list(config.classes)}

    def check(self, text: object, pair: object) -> Text:
        """Check a text and its pair as the client sent them; raise BadValue if this model cannot take them."""
        return self.predictor.check(text, pair)

    def answers(self, texts: list[Text]) -> list[dict[str, Any]]:
        """Return one record per text, like ``predict``."""
        return list(predict(self.predictor, texts))
