"""Writes the model artifact: weights in Hugging Face's layout, tokenizer, recipe, and lineage."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from xlnet import provenance
from xlnet.data import seen
from xlnet.data.tokenizer import has_tokenizer, load_tokenizer
from xlnet.model.config import XLNetConfig
from xlnet.model.pretrained import fetch
from xlnet.model.weights import save_model
from xlnet.recipe import Recipe


def write(
    directory: Path,
    weights: Mapping[str, Tensor],
    config: XLNetConfig,
    metadata: dict[str, Any],
    started: str,
    recipe: Recipe,
    dataset: str,
) -> dict[str, Any]:
    """Write the model artifact's files.

    Args:
        directory: the artifact's directory; history and logs are already in it.
        weights: the model's state dict.
        config: the model's configuration.
        metadata: facts about the training, without nesting.
        started: when the training started.
        recipe: the run's recipe; the sections that shape a model are stored with it.
        dataset: directory of the dataset artifact.

    Returns:
        The artifact's lineage.
    """
    made, tokenizer = provenance.read(dataset), Path(dataset, "tokenizer")
    save_model(weights, config, directory, load_tokenizer(tokenizer).digest if has_tokenizer(tokenizer) else "")
    for file in tokenizer.iterdir():
        shutil.copyfile(file, directory / file.name)
    _store_max_length(directory / "tokenizer_config.json", recipe.data.max_length)
    pretrained = [fetch(recipe.model.pretrained)] if recipe.model.pretrained else []
    seen.merge(directory / seen.FILE, [dataset, *pretrained])
    (directory / "recipe.json").write_text(recipe.part("data", "model", "training", "pretraining"), encoding="utf-8")
    return provenance.record(
        directory,
        type="model",
        # The pretrain step writes its own dataset, the corpus; the train step's dataset comes from preprocess.
        step="pretrain" if made["execution"]["step"] == "pretrain" else "train",
        started=started,
        parameters=json.loads(recipe.part("model", "training", "pretraining")),
        metadata={**metadata, "weights_digest": provenance.digest_file(directory / "model.safetensors")},
        inputs=[made, *pretrained_lineage(recipe.model.pretrained, started)],
    )


def _store_max_length(settings: Path, max_length: int) -> None:
    """Store the maximum length in the tokenizer's settings, so that ``truncation=True`` cuts rows as training did."""
    if not settings.is_file():
        return  # the dataset came without a tokenizer
    values = json.loads(settings.read_text(encoding="utf-8"))
    text = json.dumps({**values, "model_max_length": max_length}, indent=2, sort_keys=True) + "\n"
    settings.write_text(text, encoding="utf-8")


def pretrained_lineage(name: str, started: str) -> list[dict[str, Any]]:
    """Return the lineage of the pretrained weights: their own record, or checksums if they have none."""
    if not name:
        return []
    directory = fetch(name)
    if (directory / provenance.LINEAGE).is_file():
        provenance.verify(directory)
        return [provenance.read(directory)]
    files = [
        {"split": "pretrained", "uri": file.name, "size": file.stat().st_size, "checksum": provenance.digest_file(file)}
        for file in sorted(directory.iterdir())
        if file.is_file()
    ]
    metadata = {"name": name, "files": files}
    digest = provenance.digest_json(files)
    return [
        provenance.node(
            type="pretrained", digest=digest, step="train", started=started, parameters={}, metadata=metadata
        )
    ]
