"""What all pages share: the state directory, the targets, the list of runs, and the helper process."""

import argparse
import functools
import hashlib
import secrets
import tempfile
from pathlib import Path

from starlette.requests import Request

from xlnet.errors import RunError, UserError
from xlnet.http import Unreachable
from xlnet_pipeline.targets import Run, Target, open_target
from xlnet_pipeline.targets.local.target import LocalTarget
from xlnet_pipeline.targets.schedules import Schedule
from xlnet_pipeline.targets.settings import KfpSettings, VertexSettings, read
from xlnet_pipeline.ui.catalogue import NEWEST, LocalRuns, Remote, unreadable
from xlnet_pipeline.ui.row import RunRow, row_of
from xlnet_pipeline.ui.worker import Worker

LOCAL = "local"
_REACHED_BY = {"kfp": (KfpSettings, "endpoint"), "vertex": (VertexSettings, "project")}


class Site:
    """The server's view of one state directory, and of the remote targets that are configured."""

    def __init__(self, home: str | Path | None = None, recipe: str | None = None, worker: Worker | None = None) -> None:
        """Open the state directory. It may be empty, or not exist yet.

        Raises:
            UserError: the path is not a directory.
        """
        self.local = LocalTarget(home)
        self.home = self.local.home
        self.given_home = str(home) if home else None
        self.recipe = recipe
        self.stopping = False  # True makes event streams end
        self.secret = secrets.token_bytes(32)
        self.worker = worker or Worker()
        self.runs = LocalRuns(self.local)
        names = [name for name in _REACHED_BY if _configured(name, recipe)]
        self.remote: dict[str, Remote[RunRow]] = {
            name: Remote(functools.partial(self._runs_of, name)) for name in names
        }
        self.remote_schedules: dict[str, Remote[Schedule]] = {
            name: Remote(functools.partial(self._schedules_of, name)) for name in names
        }

    @property
    def targets(self) -> list[str]:
        """Names of the targets whose runs are shown."""
        return [LOCAL, *self.remote]

    def target(self, name: str) -> Target:
        """Open a target by its name."""
        if name in (LOCAL, "", "docker"):
            return self.local
        if name not in self.remote:
            raise UserError(f"target '{name}' is not configured here; configured: {', '.join(self.targets)}")
        return self._opened(name)

    @functools.lru_cache(maxsize=4)  # noqa: B019 - one site lives as long as the server
    def _opened(self, name: str) -> Target:
        return open_target(name, self.home, self.recipe)

    def _runs_of(self, name: str) -> list[RunRow]:
        return [row_of(run) for run in self.target(name).runs(NEWEST)]

    def _schedules_of(self, name: str) -> list[Schedule]:
        return self.target(name).schedules().all()

    def rows(self) -> list[RunRow]:
        """Return the runs of all targets, the newest first."""
        found = self.runs.rows()
        for one in self.remote.values():
            found += one.found()
        return sorted(found, key=lambda row: (row.created, row.id), reverse=True) if self.remote else found

    def problems(self) -> list[str]:
        """Return one line for each target that does not answer."""
        return [f"target {name} does not answer: {one.problem}" for name, one in self.remote.items() if one.problem]

    def run(self, name: str, target: str = LOCAL) -> Run:
        """Read a run's record.

        Raises:
            UserError: there is no such run.
            RunError: its record is damaged.
        """
        try:
            return self.target(target).status(name)
        except Unreachable:
            raise
        except RunError as error:
            path = self.home / "runs" / name / "run.json"
            raise RunError(unreadable(path, error)) from None

    def inside(self, path: str | Path) -> Path:
        """Return the path if it lies in the state directory, links followed.

        Raises:
            UserError: the path is outside the state directory, or does not exist.
        """
        if "://" in str(path):
            raise UserError(f"'{path}' is in a bucket; this page shows only files of this machine")
        found = Path(path).resolve()
        if not found.is_relative_to(self.home.resolve()):
            raise UserError(f"'{path}' lies outside the state directory '{self.home}'; this page shows only its files")
        if not found.exists():
            raise UserError(f"'{path}' is gone; run the recipe again to make it anew, or restore it from a copy")
        return found

    def files(self, uri: str, names: tuple[str, ...]) -> Path:
        """Return a directory with an artifact's files: its own, or for one in a bucket a directory of copies.

        Args:
            uri: the artifact's address.
            names: the files to copy from a bucket, if they exist.

        Raises:
            UserError: the artifact is gone, or lies outside the state directory.
        """
        if "://" not in uri:
            return self.inside(uri)
        folder = Path(self._copies.name, hashlib.sha256(uri.encode()).hexdigest()[:16])
        if not self.worker.call("copies.fetch", uri, names, str(folder)):
            raise UserError(f"'{uri}' is gone; run the recipe again to make it anew")
        return folder

    @functools.cached_property
    def _copies(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="xlnet-ui-")

    def close(self) -> None:
        """End the helper process, and remove copies of files from buckets."""
        self.worker.stop()
        if "_copies" in self.__dict__:
            self._copies.cleanup()

    def options(self, **more: object) -> argparse.Namespace:
        """Return options like those of the command line, for functions that commands use too."""
        return argparse.Namespace(home=self.given_home, recipe=self.recipe, target=LOCAL, uri=None, **more)


def site_of(request: Request) -> Site:
    """Return the site that a request is for."""
    return request.app.state.site


def _configured(name: str, recipe: str | None) -> bool:
    kind, key = _REACHED_BY[name]
    try:
        return bool(getattr(read(kind, recipe, needs=()), key))
    except UserError:
        return False
