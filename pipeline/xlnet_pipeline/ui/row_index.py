"""Caches the rows of ended runs in one file, so that the server need not read a thousand records when it starts.

The file may be removed at any time. A row is used only if its record still has the same time, size and inode.
"""

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from xlnet import provenance
from xlnet_pipeline.targets import record
from xlnet_pipeline.ui import row as rows
from xlnet_pipeline.ui.row import RunRow

NAME = "runs.index.json"  # in the state directory

Stamp = tuple[int, int, int]


def stamp_of(path: Path) -> Stamp:
    """Return a file's time in ns, size and inode. Whenever a record is replaced, one of them changes.

    Raises:
        OSError: there is no such file.
    """
    facts = os.stat(path)
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


def load(home: Path) -> dict[str, tuple[Stamp, RunRow]]:
    """Read the rows by run id. Empty if the file is missing, damaged, or from another version of this program."""
    try:
        content = json.loads((home / NAME).read_text(encoding="utf-8"))
        if content["about"] != _about(home) or content["digest"] != provenance.digest_json(content["rows"]):
            return {}
        return {name: (_stamp(stamp), _row(fields)) for name, (stamp, fields) in content["rows"].items()}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def save(home: Path, known: dict[str, tuple[Stamp, RunRow]]) -> None:
    """Replace the file. If the directory is not writable, do nothing."""
    ended = {name: [list(stamp), dataclasses.asdict(row)] for name, (stamp, row) in known.items() if not row.running}
    content = {"about": _about(home), "digest": provenance.digest_json(ended), "rows": ended}
    with contextlib.suppress(OSError):
        provenance.replace_file(home / NAME, json.dumps(content, ensure_ascii=False))


def _about(home: Path) -> dict[str, Any]:
    """Return what rows depend on besides records: the state directory's path, and the code that makes the rows."""
    code = [provenance.digest_file(str(module.__file__)) for module in (rows, record)]
    return {"home": str(home), "code": code}


def _stamp(stamp: list[int]) -> Stamp:
    time, size, inode = stamp
    return time, size, inode


def _row(fields: dict[str, Any]) -> RunRow:
    pairs = {name: tuple((one, other) for one, other in fields[name]) for name in ("steps", "digests")}
    return RunRow(**{**fields, **pairs})
