"""The index of finished steps below a pipeline root. It finds the artifact that a cached step of a backend reused.

A backend reports that a step was cached, but not which run's result it used. Therefore the snapshot step, which always
runs, writes a key for each later step, made of everything that the step's result depends on. A step that has finished
writes an entry under its key. A reader of a run looks up a cached step's key, and finds the artifact.

    INDEX/runs/RUN.json         step → key
    INDEX/work/KEY/RUN.json     {"run": …, "uri": … of the artifact}
    INDEX/failed/RUN/STEP.json  {"status": …, "words": …} of a step that failed for good
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xlnet import provenance
from xlnet.data import objects
from xlnet.errors import Missing
from xlnet.steps import KEPT, before

FOLDER = "index"  # name of the index's folder below the pipeline root


@dataclass(frozen=True)
class Work:
    """An entry: the run that finished a step's work, and the address of the artifact that it made."""

    run: str
    uri: str


def keys(taken: Mapping[str, str], code: str) -> dict[str, str]:
    """Map each step to the key of its work, in hexadecimal digits.

    Args:
        taken: the snapshot step's outputs: ``digest``, ``pretrained``, and each cached step's part of the recipe.
        code: identity of the code.
    """
    found: dict[str, str] = {}
    for step in (name for name in KEPT if name in taken):
        of = [taken["digest"], taken["pretrained"]] if KEPT[step].trains else [taken["digest"]]
        work = [step, code, taken[step], *of, *(found[name] for name in before(step) if name in found)]
        found[step] = provenance.digest_json(work).removeprefix("sha256:")[:32]
    return found


def announce(index: str, run: str, found: Mapping[str, str]) -> None:
    """Write the keys of a run's steps."""
    objects.write(f"{index}/runs/{run}.json", json.dumps(found, indent=1).encode())


def enter(index: str, run: str, step: str, uri: str) -> None:
    """Write the entry of a step that has finished. Do nothing if the run has announced no key for the step."""
    if key := keys_of(index, run).get(step):
        objects.write(f"{index}/work/{key}/{run}.json", json.dumps({"run": run, "uri": uri}).encode())


def fail(index: str, run: str, step: str, why: Mapping[str, Any]) -> None:
    """Record that a step has failed for good, with its ``status`` and its ``words``."""
    objects.write(f"{index}/failed/{run}/{step}.json", json.dumps(why).encode())


def failed(index: str, run: str, step: str) -> dict[str, Any] | None:
    """Return what :func:`fail` recorded; None if the step has not failed."""
    with contextlib.suppress(Missing):
        return json.loads(objects.read(f"{index}/failed/{run}/{step}.json"))
    return None


def keys_of(index: str, run: str) -> dict[str, str]:
    """Return the key of each step, as the run's snapshot step wrote them; empty if it wrote none."""
    with contextlib.suppress(Missing):
        return json.loads(objects.read(f"{index}/runs/{run}.json"))
    return {}


def done(index: str, key: str) -> list[Work]:
    """List the entries under a key, the latest first."""
    base = f"{index}/work/{key}/"
    blobs = sorted(objects.listing(base), key=lambda blob: str(blob.updated), reverse=True)
    return [Work(**json.loads(objects.read(base + blob.name.rpartition("/")[2]))) for blob in blobs]
