"""Where MLflow's sqlite file says that files are: below its own folder, also after the folder was moved or copied.

MLflow stores absolute addresses and has no call that changes them, so they are corrected in the database itself.
MLflow's own pages and ``download_artifacts`` then find the files of a model too.
"""

import contextlib
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from xlnet import state

ARTIFACTS = "mlflow-artifacts"  # folder beside the database, of what users add to MLflow's experiments and runs

_FILE = "file://"
_ARTIFACTS_FOLDER = re.compile(rf"(?:{_FILE})?/.*/{ARTIFACTS}(/.*)?")
_DEFAULT_FOLDER = re.compile(rf"(?:{_FILE})?/.*/mlruns/0")  # of MLflow's experiment 0, in the working directory


def location(database: Path, experiment: str) -> str:
    """The folder of an experiment's artifacts."""
    return str(database.parent / ARTIFACTS / re.sub(r"[^\w.-]", "-", experiment))


def source(address: str) -> str:
    """A model's address as MLflow wants it."""
    return Path(address).as_uri() if address.startswith("/") else address


def settle(database: Path) -> None:
    """Point addresses that are of another place than the database's folder, if they lie in this one now, here.

    A database that cannot be written, or is none of MLflow's, is left as it is.
    """
    folder = database.parent
    columns: tuple[tuple[str, str, Callable[[str], str]], ...] = (
        ("experiments", "artifact_location", lambda address: _artifacts(address, folder)),
        ("runs", "artifact_uri", lambda address: _artifacts(address, folder)),
        ("model_versions", "source", lambda address: _model(address, folder)),
        ("model_versions", "storage_location", lambda address: _model(address, folder)),
    )
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database, timeout=10)) as connection:
        for table, column, moved in columns:
            found = connection.execute(f"SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL")
            for (old,) in found.fetchall():
                if (new := moved(old)) != old:
                    connection.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (new, old))
        connection.commit()


def _artifacts(address: str, folder: Path) -> str:
    if _DEFAULT_FOLDER.fullmatch(address):
        return str(folder / ARTIFACTS / "0")
    match = _ARTIFACTS_FOLDER.fullmatch(address)
    return f"{folder / ARTIFACTS}{match.group(1) or ''}" if match else address


def _model(address: str, folder: Path) -> str:
    if not address.startswith(_FILE):
        return address
    return source(state.absolute(unquote(urlsplit(address).path), folder))
