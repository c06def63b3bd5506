"""Caches a sqlite registry's answers until its file changes, because opening MLflow takes seconds."""

import contextlib
import json
from pathlib import Path
from typing import Any

from xlnet import provenance

CHANGE_COUNTER = slice(24, 28)  # in a sqlite file's header; each transaction raises it (sqlite.org/fileformat.html)


class AnswerCache:
    """A cache of question → answer for one state of a registry's file.

    Call :meth:`get` first. If it returns None, ask the registry and :meth:`put` its answer, for the :attr:`state` that
    was read before asking: if the file changes meanwhile, the answer is dropped.
    """

    def __init__(self, database: Path | None) -> None:
        """Open the cache of a registry's file. Without a file, nothing is cached."""
        self._database = database
        self.state = self._read_state()

    def _read_state(self) -> str:
        if self._database is None or not self._database.is_file():
            return ""
        log = self._database.with_name(f"{self._database.name}-wal")
        with self._database.open("rb") as file:
            counter = file.read(CHANGE_COUNTER.stop)[CHANGE_COUNTER].hex()
        found = self._database.stat()
        written = log.stat().st_mtime_ns if log.is_file() else "-"
        # A moved file is opened once, because MLflow's addresses in it have to be corrected.
        return f"{counter} {found.st_size} {found.st_mtime_ns} {written} {self._database}"

    @property
    def _file(self) -> Path:
        assert self._database is not None
        return self._database.with_name(f"{self._database.name}-answers.json")

    def get(self, question: str) -> Any:
        """Return the answer for the file's current state; None if it is not cached."""
        return self._load().get(question)

    def put(self, question: str, answer: Any) -> None:
        """Cache an answer, which must not be None."""
        if not self.state:
            return
        content = {"state": self.state, "answers": {**self._load(), question: answer}}
        with contextlib.suppress(OSError):  # if the directory is not writable, the registry is asked again next time
            provenance.replace_file(self._file, json.dumps(content))

    def _load(self) -> dict[str, Any]:
        if not self.state:
            return {}
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
            kept: dict[str, Any] = content["answers"] if content["state"] == self.state else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return kept
