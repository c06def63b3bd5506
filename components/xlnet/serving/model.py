"""The model that a server answers with."""

from pathlib import Path
from typing import Any

from xlnet.evaluation.predict import predict
from xlnet.evaluation.predictor import Predictor
from xlnet.serving.requests import Text


class Model:
    """A model directory, opened, with the name it is served under."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.predictor = Predictor(directory)
        config = self.predictor.model.config
        self.facts: dict[str, Any] = {"name": name, "task": config.task, "classes": list(config.classes)}

    def check(self, text: object, pair: object) -> Text:
        """A text and its pair as they were sent; BadValue if this model cannot take them."""
        return self.predictor.check(text, pair)

    def answers(self, texts: list[Text]) -> list[dict[str, Any]]:
        """One record per text, as ``predict`` has it."""
        return list(predict(self.predictor, texts))
