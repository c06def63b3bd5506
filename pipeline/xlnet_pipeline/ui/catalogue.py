"""Lists the runs of every target, one row each. A record is read again only when it has changed."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from xlnet import http
from xlnet.errors import RunError, UserError
from xlnet_pipeline.targets import record
from xlnet_pipeline.targets.local.target import LocalTarget
from xlnet_pipeline.ui import row_index
from xlnet_pipeline.ui.row import RunRow, row_of
from xlnet_pipeline.ui.row_index import Stamp, stamp_of

FRESH = 15.0  # seconds before a remote target is asked for its list again
PATIENCE = 1.0  # seconds that a page waits for a remote target's first list
LONGEST = 3.0  # seconds for which a failing call to a remote target is repeated
NEWEST = 200  # maximum number of runs to list from a remote target
MANY = 50  # the index file is written after so many records were read; fewer are quickly read again

Item = TypeVar("Item")


class LocalRuns:
    """The rows of the state directory's runs."""

    def __init__(self, target: LocalTarget) -> None:
        self.target = target
        self.folder = target.home / "runs"
        self._known: dict[str, tuple[Stamp, RunRow]] | None = None
        self._unsaved = 0  # rows that the index file lacks
        self._lock = threading.Lock()

    def rows(self) -> list[RunRow]:
        """Return the rows of all runs, the newest first."""
        with self._lock:
            if self._known is None:
                self._known = row_index.load(self.target.home)
            found: dict[str, tuple[Stamp, RunRow]] = {}
            for name in _names(self.folder):
                try:
                    stamp = stamp_of(self.folder / name / "run.json")
                except OSError:  # a directory of another kind, or just removed
                    continue
                old = self._known.get(name)
                if old and old[0] == stamp and not old[1].running:
                    found[name] = old
                else:
                    found[name] = (stamp, self._row(name))
                    self._unsaved += not found[name][1].running
            self._known = found
            if self._unsaved >= MANY:
                row_index.save(self.target.home, found)
                self._unsaved = 0
            rows = [row for _, row in found.values()]
        return sorted(rows, key=lambda row: (row.created, row.id), reverse=True)

    def _row(self, name: str) -> RunRow:
        path = self.folder / name / "run.json"
        try:
            run = record.read(path)
            return row_of(self.target.status(name) if run.status == record.RUNNING else run)  # its process may be gone
        except (RunError, UserError, OSError, ValueError) as error:
            return row_of(record.damaged(path, self.target.name, unreadable(path, error)))


class Remote(Generic[Item]):
    """A remote target's list. It is fetched in the background, so that no page waits long for a target."""

    def __init__(self, ask: Callable[[], list[Item]]) -> None:
        """Take the function that asks the target; do not call it yet."""
        self._ask_target = ask
        self._found: list[Item] = []
        self.problem = ""  # why the list is old or empty
        self._asked = 0.0
        self._busy = threading.Lock()

    def found(self) -> list[Item]:
        """Return the target's last list. If it is old, ask the target again in the background."""
        if time.monotonic() - self._asked > FRESH and self._busy.acquire(blocking=False):
            asking = threading.Thread(target=self._ask, daemon=True)
            asking.start()
            if not self._asked:
                asking.join(PATIENCE)
        if not self._asked and not self.problem:
            self.problem = "it has not answered yet; load the page again in a moment"
        return list(self._found)

    def _ask(self) -> None:
        try:
            with http.patience(LONGEST):
                self._found = self._ask_target()
            self.problem = ""
        except (UserError, RunError, OSError) as error:
            self.problem = str(error)
        except ModuleNotFoundError as error:
            self.problem = f"{error.name} is not installed; type: pip install 'xlnet-pipeline[pipeline]'"
        finally:
            self._asked = time.monotonic()
            self._busy.release()


def unreadable(path: Path, error: Exception) -> str:
    """Say why a record cannot be read, and what to do."""
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))["schema"]
        if isinstance(schema, int) and schema > record.SCHEMA:
            return f"a newer version of xlnet-pipeline wrote this record (schema {schema}); install that version"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return str(error)


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
