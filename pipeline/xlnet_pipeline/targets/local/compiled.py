"""The compiled pipeline, kept where Python keeps the bytecode of the same sources, else in the state directory.

Compiling needs kfp, which takes a second to import. A run on this machine whose code was compiled before does without.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xlnet_steps
from xlnet import provenance, recipe

Specification = dict[str, Any]
PACKAGE = Path(__file__).parents[2]
PREFIX = "pipeline-"
CODE = "code"  # the parameter that identifies a step's code


def specification(code: Mapping[str, str], home: Path) -> Specification:
    """The pipeline as it runs on this machine, in no image.

    Args:
        code: step → identity of its code, part of its cache key.
        home: the state directory; nothing is made in it that is not there.
    """
    name = _name()
    bytecode = Path(importlib.util.cache_from_source(str(PACKAGE / "dag.py"))).parent
    places = [home / "cache"]
    if not sys.dont_write_bytecode:
        with contextlib.suppress(OSError):  # a package may be read-only, and still runs
            bytecode.mkdir(parents=True, exist_ok=True)
        places.insert(0, bytecode)
    spec = next(filter(None, (_kept(place / name) for place in places)), None)
    if spec is None:
        spec = _compiled()
        any(_keep(spec, place / name) for place in places)
    for step, task in spec["root"]["dag"]["tasks"].items():
        if CODE in task.get("inputs", {}).get("parameters", {}):
            task["inputs"]["parameters"][CODE] = {"runtimeValue": {"constant": code[step]}}
    return spec


def _compiled() -> Specification:
    from xlnet_pipeline import dag

    (spec,) = dag.documents()
    return spec


def _kept(path: Path) -> Specification | None:
    try:
        found: Specification = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _keep(spec: Specification, path: Path) -> bool:
    """Whether the pipeline could be kept there."""
    aside = path.with_suffix(f".{os.getpid()}.partial")
    try:
        for earlier in path.parent.glob(f"{PREFIX}*.json"):
            earlier.unlink(missing_ok=True)
        aside.write_text(json.dumps(spec), encoding="utf-8")
        os.replace(aside, path)
    except OSError:
        return False
    return True


def _name() -> str:
    """Named after all that the compiled pipeline follows from: the DAG, the components, the recipe's parts, and kfp."""
    steps = Path(xlnet_steps.__file__).parent
    sources = [PACKAGE / "dag.py", *sorted(PACKAGE.glob("placement/*.py")), *sorted(steps.glob("*.py"))]
    digests = [provenance.digest_file(path) for path in [*sources, Path(recipe.__file__)]]
    key = provenance.digest_json([digests, importlib.metadata.version("kfp"), sys.version_info[:2]])[7:47]
    return f"{PREFIX}{key}.json"
