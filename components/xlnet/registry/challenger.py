"""The challenger: a model to register, with its dataset and evaluation."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import safe_open

from xlnet.data import seen
from xlnet.errors import RunError


@dataclass(frozen=True)
class Challenger:
    """The artifact directories of a model, its dataset and its evaluation."""

    dataset: Path
    model: Path
    evaluation: Path
    model_digest: str

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The evaluation's ``metrics.json``."""
        return json.loads((self.evaluation / "metrics.json").read_text(encoding="utf-8"))

    @property
    def classes(self) -> list[str]:
        """Class names in index order; empty for regression."""
        return list(self.metrics["classes"])

    @property
    def scores(self) -> dict[str, float]:
        """All metrics that could be computed."""
        values = {name: figure["value"] for name, figure in self.metrics["metrics"].items()}
        return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}

    @property
    def score(self) -> float | None:
        """The primary metric's value; None if it could not be computed."""
        return self.scores.get(self.metrics["primary"])

    def test_keys(self) -> np.ndarray | None:
        """Keys of the test rows, see :func:`xlnet.data.seen.key`: int64 [rows]; None if texts were not stored."""
        file = pq.ParquetFile(self.evaluation / "predictions.parquet")
        if "text" not in file.schema_arrow.names:
            return None
        table = file.read(columns=["text", "text_pair"])
        rows = zip(table["text"].to_pylist(), table["text_pair"].to_pylist(), strict=True)
        return np.array([seen.key(text, pair) for text, pair in rows], np.int64)

    def refuse_not_finite(self) -> None:
        """Raise RunError if a weight or a prediction of the model is nan or inf."""
        weights = self.model / "model.safetensors"
        if weights.is_file():
            with safe_open(str(weights), framework="np") as file:
                for name in file.keys():  # noqa: SIM118 (no dictionary)
                    if not np.isfinite(file.get_tensor(name)).all():
                        raise RunError(f"'{self.model}' is not registered: its weight '{name}' holds nan or inf")
        table = pq.read_table(self.evaluation / "predictions.parquet")
        for name in ("prediction", "loss"):
            column = table[name] if name in table.column_names else None
            if column is not None and column.type in ("double", "float"):
                bad = pc.sum(pc.invert(pc.is_finite(column))).as_py()
                if bad:
                    raise RunError(f"'{self.model}' is not registered: {bad:,} of its answers ({name}) are nan or inf")
