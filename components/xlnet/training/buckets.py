"""A training whose dataset and model lie in buckets: the dataset is copied here, the model written there whole.

On a cluster no disk is shared: every node copies the dataset, and node 0 sends the model.
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
    """A directory on this machine with the dataset; the ranks of one machine copy it once.

    Raises:
        UserError: there is nothing at that address, or no access.
    """
    if not objects.is_remote(dataset):
        return dataset
    with Path(tempfile.gettempdir(), f"xlnet-dataset-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return str(objects.local_directory(dataset))


@contextlib.contextmanager
def writing(out: str) -> Iterator[Path]:
    """As :func:`xlnet.provenance.writing`, also into a bucket: ``lineage.json`` comes last, so what has it is whole."""
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
    """Facts about a written model for the artifact's metadata, its digest among them."""
    if objects.is_remote(out):
        lineage = json.loads(objects.read(f"{out}/{provenance.LINEAGE}"))
    else:
        lineage = provenance.read(out)
    artifact = lineage["artifact"]
    return {**artifact["metadata"], "model_digest": artifact["digest"]}


def beside(out: str) -> str:
    """Where a model's checkpoints lie if nobody says otherwise: a hidden directory or prefix beside it."""
    parent, _, name = out.rstrip("/").rpartition("/")
    return f"{parent}/.{name}.checkpoints" if parent else f".{name}.checkpoints"
