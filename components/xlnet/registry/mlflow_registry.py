"""The registry in MLflow: a sqlite file by default, or any tracking server."""

import contextlib
import fcntl
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from xlnet import state
from xlnet.data.addresses import is_remote
from xlnet.errors import RunError, UserError, nearest
from xlnet.redaction import redacted
from xlnet.registry import cache, mlflow_files
from xlnet.registry.address import sqlite_file
from xlnet.registry.versions import CHAMPION, ModelVersion, choose

MODEL = "model"  # folder of a run's artifacts on a server
BATCH = 100  # parameters in one request, which is MLflow's limit
PARAMETER_LENGTH = 500  # MLflow's limit for a parameter's value in its older stores


class MlflowRegistry:
    """See :class:`xlnet.registry.Registry` for the methods."""

    def __init__(self, uri: str, home: Path | None = None) -> None:
        """Take a tracking URI. The registry is opened, or its file created, when it is first needed.

        Args:
            uri: URI of a server, or of a sqlite file; such a file stores addresses in its own folder as relative.
            home: the state directory, where the files of a server's models are looked for.
        """
        self.uri = uri
        self._file = sqlite_file(uri)
        self._folder = self._file.parent if self._file else home or state.home()

    @property
    def shown_uri(self) -> str:
        """The URI without user name and password."""
        return redacted(self.uri)

    def ready(self, name: str) -> None:
        """Raise UserError or RunError if no version can be registered: no server, or a deleted experiment."""
        if self._file is not None and not self._file.is_file():
            return
        if number := self._answer(f"deleted experiment {name}", lambda: self._deleted_experiment(name)):
            raise UserError(
                f"MLflow's experiment '{name}' was deleted in '{self.shown_uri}'; choose another registry.name, or "
                f"restore it: mlflow experiments restore --experiment-id {number}"
            )

    def names(self) -> list[str]:
        if self._file is not None and not self._file.is_file():
            return []
        found: list[str] = self._answer("names", self._all_names)
        return found

    def _all_names(self) -> list[str]:
        return sorted(model.name for model in _all(self._client.search_registered_models))

    def versions(self, name: str) -> list[ModelVersion]:
        if name not in (known := self.names()):
            none = "no model is registered yet; train one with: xlnet-pipeline run"
            listed = f"registered: {', '.join(known)}" if known else none
            raise UserError(f"model '{name}' is unknown; {listed}{nearest(name, known)}")
        return self._versions(name)

    def _versions(self, name: str) -> list[ModelVersion]:
        found: list[dict[str, Any]] = self._answer(f"versions {name}", lambda: self._facts_of_versions(name))
        return [self._version(one) for one in found]

    def _version(self, facts: dict[str, Any]) -> ModelVersion:
        tags = state.restored(facts["tags"], self._folder)
        return ModelVersion(**facts | {"aliases": tuple(facts["aliases"]), "tags": tags})

    def _facts_of_versions(self, name: str) -> list[dict[str, Any]]:
        found = _all(self._client.search_model_versions, filter_string=_named(name))
        aliases = self._client.get_registered_model(name).aliases if found else {}
        facts = [_facts(one, aliases) for one in found if one.name == name]
        return sorted(facts, key=lambda one: int(one["version"]), reverse=True)

    def find(self, reference: str) -> ModelVersion:
        return choose(reference, self.versions)

    def champion(self, name: str) -> ModelVersion | None:
        if self._file is not None and not self._file.is_file():
            return None
        return next((version for version in self._versions(name) if CHAMPION in version.aliases), None)

    def add(
        self, name: str, description: str, tags: dict[str, str], parameters: dict[str, str], metrics: dict[str, float]
    ) -> ModelVersion:
        """Log an MLflow run with parameters and metrics, and register a version that links to it."""
        known, kept = self.names(), self._stored(tags)
        with self._errors():
            client = self._client
            experiment = client.get_experiment_by_name(name)
            place = mlflow_files.location(self._file, name) if self._file else None
            number = experiment.experiment_id if experiment else client.create_experiment(name, place)
            run = client.create_run(number, run_name=tags.get("run") or None, tags=kept).info.run_id
            _log(client, run, parameters, metrics)
            source = self._source(run, tags["model_uri"])
            client.set_terminated(run)
            if name not in known:
                client.create_registered_model(name)
            made = client.create_model_version(name, source, run_id=run, tags=kept, description=description)
        if self._file and not known:
            mlflow_files.settle(self._file)  # corrects MLflow's default experiment
        return self._version(_facts(made, {}))

    def _source(self, run: str, model: str) -> str:
        """Return the address of a version's files. A server refuses paths of this machine, so it gets a copy."""
        if self._file is not None or is_remote(model):
            return mlflow_files.source(model)
        try:
            self._client.log_artifacts(run, model, MODEL)
        except OSError as error:
            reason = redacted(str(error).strip().splitlines()[0])[:200]
            raise RunError(f"registry '{self.shown_uri}' did not take the files of '{model}': {reason}") from None
        return f"{self._client.get_run(run).info.artifact_uri}/{MODEL}"

    def describe(self, name: str, version: int, description: str, tags: dict[str, str]) -> None:
        with self._errors():
            self._client.update_model_version(name, str(version), description)
            for key, value in self._stored(tags).items():
                self._client.set_model_version_tag(name, str(version), key, value)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        with self._errors():
            self._client.set_registered_model_alias(name, alias, str(version))

    def delete(self, name: str, version: int) -> None:
        """Remove a version and mark its MLflow run as deleted; remove the model with its last version."""
        with self._errors():
            client = self._client
            run = client.get_model_version(name, str(version)).run_id
            client.delete_model_version(name, str(version))
            if run:
                client.delete_run(run)
        if not self._versions(name):
            with self._errors():
                self._client.delete_registered_model(name)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold a lock file beside a sqlite file; a server does its own locking."""
        if self._file is None:
            yield
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            lock = self._file.with_name(self._file.name + ".lock").open("a")
        except OSError as error:
            raise UserError(f"cannot write beside registry '{self._file}': {error.strerror}; choose another") from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @cached_property
    def _client(self) -> Any:
        try:
            from xlnet.registry.mlflow_client import MlflowClient
        except ImportError:
            raise UserError("the registry needs MLflow: pip install 'xlnet-pipeline[registry]'") from None
        if self._file and self._file.is_file():
            _refuse_unreadable(self._file)
            mlflow_files.settle(self._file)
        elif self._file:
            mlflow_files.create(self._file, MlflowClient)
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def _stored(self, tags: dict[str, str]) -> dict[str, str]:
        return state.stored(tags, self._folder) if self._file else tags

    def _answer(self, question: str, ask: Callable[[], Any]) -> Any:
        """Return what ``ask`` finds in MLflow. A file is only opened if it has changed since the question was asked."""

        def asked() -> Any:
            with self._errors():
                return ask()

        return cache.answer(self._file, question, asked)

    def _deleted_experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id) if found and found.lifecycle_stage != "active" else ""

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise MLflow's exceptions again as ours, whose messages are one line."""
        assert self._client is not None
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            reason = redacted(str(error).strip().splitlines()[0])[:200]
            raise RunError(f"registry '{self.shown_uri}' does not answer or refuses: {reason}") from None
        except ImportError as error:
            raise UserError(
                f"registry '{self.shown_uri}' needs the Python package '{error.name}'; install it"
            ) from None


def _log(client: Any, run: str, parameters: dict[str, str], metrics: dict[str, float]) -> None:
    """Log parameters and metrics in few requests, each of which is a transaction of its own."""
    from xlnet.registry.mlflow_client import Metric, Param

    now = int(time.time() * 1000)
    figures = [Metric(key, figure, now, 0) for key, figure in metrics.items()]
    words = [Param(key, value[:PARAMETER_LENGTH]) for key, value in parameters.items()]
    for start in range(0, max(1, len(words)), BATCH):
        client.log_batch(run, metrics=[] if start else figures, params=words[start : start + BATCH])


def _refuse_unreadable(file: Path) -> None:
    """Raise RunError for a sqlite file that MLflow cannot open, because MLflow reports it after minutes, or never."""
    try:
        with file.open("rb"):
            pass
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchall()
    except OSError as error:
        raise RunError(f"registry file '{file}' cannot be read: {error.strerror}") from None
    except sqlite3.OperationalError:  # the file may be locked for a moment, and MLflow waits for that
        return
    except sqlite3.DatabaseError as error:
        raise RunError(f"registry file '{file}' is damaged ({error}); put back a copy, or move it away") from None


def _facts(one: Any, aliases: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a :class:`ModelVersion` as JSON can hold them, with the tags as they are stored."""
    created = datetime.fromtimestamp(one.creation_timestamp / 1000, UTC)
    return {
        "name": one.name,
        "version": int(one.version),
        "aliases": sorted(alias for alias, version in aliases.items() if int(version) == int(one.version)),
        "created": created.isoformat(timespec="seconds"),
        "description": one.description or "",
        "tags": dict(one.tags),
    }


def _named(name: str) -> str | None:
    """Return MLflow's filter for a model's versions; None if the name has both kinds of quotes (there is no escape)."""
    quotes = [quote for quote in "'\"" if quote not in name]
    return f"name={quotes[0]}{name}{quotes[0]}" if quotes else None


def _all(search: Any, **arguments: Any) -> list[Any]:
    found, token = [], None
    while True:
        page = search(**arguments, page_token=token)
        found += list(page)
        if not (token := page.token):
            return found
