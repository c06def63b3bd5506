"""Compiles the pipeline once and stores it beside Python's bytecode, or in the state directory if that is read-only.

Compiling needs kfp, which takes a second to import. Later runs of the same code read the stored file instead.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xlnet_steps
from xlnet import provenance, recipe
from xlnet_pipeline.placement import all_tasks

Specification = dict[str, Any]
PACKAGE = Path(__file__).parents[2]
PREFIX, PRETRAINS = "pipeline-", "pipeline-pretrains-"
SHARDED = "sharded-"  # in the name of a pipeline with shards, whatever their number
CODE, SHARDS = "code", "shards"  # the parameters that identify a step's code, and say how many shards there are


def specification(code: Mapping[str, str], home: Path, pretrains: bool = False, shards: int = 1) -> Specification:
    """Return the compiled pipeline for steps that run on this machine, without an image.

    Args:
        code: maps each step to the identity of its code, which is part of its cache key.
        home: the state directory. Its folders are not created if they are missing.
        pretrains: whether it has the step that pretrains.
        shards: number of tasks that tokenise; 1: step preprocess does it all.
    """
    name = _name(pretrains, shards > 1)
    bytecode = Path(importlib.util.cache_from_source(str(PACKAGE / "dag.py"))).parent
    places = [home / "cache"]
    if not sys.dont_write_bytecode:
        with contextlib.suppress(OSError):  # a package may be read-only, and still runs
            bytecode.mkdir(parents=True, exist_ok=True)
        places.insert(0, bytecode)
    spec = next(filter(None, (_kept(place / name) for place in places)), None)
    if spec is None:
        spec = _compiled(pretrains, shards)
        any(_keep(spec, place / name) for place in places)
    for step, task in all_tasks(spec).items():
        for name, value in ((CODE, code.get(step)), (SHARDS, str(shards))):
            if name in task.get("inputs", {}).get("parameters", {}):
                task["inputs"]["parameters"][name] = {"runtimeValue": {"constant": value}}
    return spec


def _compiled(pretrains: bool, shards: int) -> Specification:
    from xlnet_pipeline import dag

    (spec,) = dag.documents(pretrains=pretrains, shards=shards)
    return spec


def _kept(path: Path) -> Specification | None:
    try:
        found: Specification = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _keep(spec: Specification, path: Path) -> bool:
    """Store the pipeline in a file; return False if the file cannot be written."""
    try:
        for earlier in path.parent.glob(f"{path.name.rpartition('-')[0]}-*.json"):
            if earlier.name.rpartition("-")[0] == path.name.rpartition("-")[0]:
                earlier.unlink(missing_ok=True)
        provenance.replace_file(path, json.dumps(spec))
    except OSError:
        return False
    return True


def _name(pretrains: bool = False, sharded: bool = False) -> str:
    """Return the file's name, which changes with the sources of DAG, components and recipe, and with kfp's version."""
    steps = Path(xlnet_steps.__file__).parent
    sources = [PACKAGE / "dag.py", *sorted(PACKAGE.glob("placement/*.py")), *sorted(steps.glob("*.py"))]
    digests = [provenance.digest_file(path) for path in [*sources, Path(recipe.__file__)]]
    key = provenance.digest_json([digests, importlib.metadata.version("kfp"), sys.version_info[:2]])[7:47]
    return f"{PRETRAINS if pretrains else PREFIX}{SHARDED if sharded else ''}{key}.json"
