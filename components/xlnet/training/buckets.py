"""Training with the dataset and the model in buckets: downloads the dataset and uploads the finished model.

Cluster nodes share no disk, so every node downloads the dataset, and node 0 uploads the model.
"""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xlnet import provenance
from xlnet.data import objects


def local_dataset(dataset: str) -> str:
    """Return a local directory with the dataset; the ranks of one machine download it once.

    Raises:
        UserError: the address holds nothing, or access is denied.
    """
    if not objects.is_remote(dataset):
        return dataset
    with Path(tempfile.gettempdir(), f"xlnet-dataset-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return str(objects.local_directory(dataset))


@contextlib.contextmanager
def writing(out: str) -> Iterator[Path]:
    """Like :func:`xlnet.provenance.writing`, but also writes to buckets.

    ``lineage.json`` is uploaded last, so an artifact that has it is complete.
    """
    if not objects.is_remote(out):
        with provenance.writing(out, "model") as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory(prefix="xlnet-artifact-") as scratch:
        yield Path(scratch)
        lineage = Path(scratch, provenance.LINEAGE)
        content = lineage.read_bytes()
        lineage.unlink()
        objects.upload(scratch, out)
        objects.write(f"{out}/{provenance.LINEAGE}", content)


def facts(out: str) -> dict[str, Any]:
    """Return facts about a written model, including its digest, for the artifact's metadata."""
    if objects.is_remote(out):
        lineage = json.loads(objects.read(f"{out}/{provenance.LINEAGE}"))
    else:
        lineage = provenance.read(out)
    artifact = lineage["artifact"]
    return {**artifact["metadata"], "model_digest": artifact["digest"]}


def beside(out: str) -> str:
    """Return the default location of a model's checkpoints: a hidden directory or prefix beside the model."""
    parent, _, name = out.rstrip("/").rpartition("/")
    return f"{parent}/.{name}.checkpoints" if parent else f".{name}.checkpoints"
