"""The index of finished work, below a pipeline root: what a step that a backend took from its cache stands for.

A backend says that a step was cached, not whose result it took. So the snapshot step, which runs every time, leaves its
run's keys: one for each later step, made of all that decides the step's result. A step that has done its work leaves
an entry under its key. Whoever looks at a run with a cached step finds the step's key, and under it the artifact.

    INDEX/runs/RUN.json         step → key
    INDEX/work/KEY/RUN.json     {"run": …, "uri": … of the artifact}
    INDEX/failed/RUN/STEP.json  {"status": …, "words": …} of a step that failed for good
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xlnet import provenance
from xlnet.data import objects
from xlnet.errors import Missing
from xlnet.steps import KEPT, before

FOLDER = "index"  # of an index, below its pipeline root


@dataclass(frozen=True)
class Work:
    """One run's doing of a piece of work, and where its artifact is."""

    run: str
    uri: str


def keys(taken: Mapping[str, str], code: str) -> dict[str, str]:
    """Step → key of its work: hexadecimal digits.

    Args:
        taken: what the snapshot step returns: ``digest``, ``pretrained``, and each later step's part of the recipe.
        code: identity of the code.
    """
    found: dict[str, str] = {}
    for step in KEPT:
        of = [taken["digest"], taken["pretrained"]] if step == "train" else [taken["digest"]]
        work = [step, code, taken[step], *of, *(found[name] for name in before(step))]
        found[step] = provenance.digest_json(work).removeprefix("sha256:")[:32]
    return found


def announce(index: str, run: str, found: Mapping[str, str]) -> None:
    """Leave a run's keys."""
    objects.write(f"{index}/runs/{run}.json", json.dumps(found, indent=1).encode())


def enter(index: str, run: str, step: str, uri: str) -> None:
    """Leave the entry of a step's finished work; nothing if the run has announced no key for it."""
    if key := keys_of(index, run).get(step):
        objects.write(f"{index}/work/{key}/{run}.json", json.dumps({"run": run, "uri": uri}).encode())


def fail(index: str, run: str, step: str, why: Mapping[str, Any]) -> None:
    """Leave word that a step has failed for good: ``status`` and ``words``."""
    objects.write(f"{index}/failed/{run}/{step}.json", json.dumps(why).encode())


def failed(index: str, run: str, step: str) -> dict[str, Any] | None:
    """What :func:`fail` left; None if the step has not failed."""
    try:
        found: dict[str, Any] = json.loads(objects.read(f"{index}/failed/{run}/{step}.json"))
    except Missing:
        return None
    return found


def keys_of(index: str, run: str) -> dict[str, str]:
    """Step → key, as the run's snapshot left them; empty if it left none."""
    try:
        found: dict[str, str] = json.loads(objects.read(f"{index}/runs/{run}.json"))
    except Missing:
        return {}
    return found


def done(index: str, key: str) -> list[Work]:
    """Who has done the work of that key, the latest first."""
    base = f"{index}/work/{key}/"
    blobs = sorted(objects.listing(base), key=lambda blob: str(blob.updated), reverse=True)
    return [Work(**json.loads(objects.read(base + blob.name.rpartition("/")[2]))) for blob in blobs]
