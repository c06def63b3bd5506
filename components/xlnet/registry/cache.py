"""Caches answers about a registry's sqlite file until the file changes, because opening MLflow takes seconds."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xlnet import __version__, provenance

CHANGE_COUNTER = slice(24, 28)  # in a sqlite file's header; each transaction raises it (sqlite.org/fileformat.html)


def answer(database: Path | None, question: str, ask: Callable[[], Any]) -> Any:
    """Return the answer to a question about a file. Ask only if the file has changed since the last time.

    If the file changes while ``ask`` runs, the answer is not used again.

    Args:
        database: the registry's file; None means a server, which is always asked.
        question: identifies what is asked.
        ask: returns the answer, as JSON can hold it.
    """
    if database is None or not (state := _state(database)):
        return ask()
    file = database.with_name(f"{database.name}-answers.json")
    if question in (known := _known(file, state)):
        return known[question]
    found = ask()
    content = {"state": state, "answers": {**_known(file, state), question: found}}
    with contextlib.suppress(OSError):  # if the directory is not writable, MLflow is asked again next time
        provenance.replace_file(file, json.dumps(content))
    return found


def _state(database: Path) -> str:
    """Return words that differ after each change of the file; empty if there is no file."""
    if not database.is_file():
        return ""
    log = database.with_name(f"{database.name}-wal")
    with database.open("rb") as file:
        counter = file.read(CHANGE_COUNTER.stop)[CHANGE_COUNTER].hex()
    found = database.stat()
    written = log.stat().st_mtime_ns if log.is_file() else "-"
    # A moved file is opened once, because MLflow's addresses in it have to be corrected.
    return f"{__version__} {counter} {found.st_size} {found.st_mtime_ns} {written} {database}"


def _known(file: Path, state: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return dict(content["answers"]) if content["state"] == state else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
