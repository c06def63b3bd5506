"""Corrects the file addresses in MLflow's sqlite file after its folder was moved or copied.

MLflow stores absolute addresses and has no call that changes them, so this module changes the database itself.
Then MLflow's own pages and ``download_artifacts`` also find a model's files.
"""

import contextlib
import re
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from xlnet import state
from xlnet.registry.address import sqlite

ARTIFACTS = "mlflow-artifacts"  # folder beside the database for files that users add to experiments and runs

_FILE = "file://"
_ARTIFACTS_FOLDER = re.compile(rf"(?:{_FILE})?/.*/{ARTIFACTS}(/.*)?")
_DEFAULT_FOLDER = re.compile(rf"(?:{_FILE})?/.*/mlruns/0")  # MLflow's default for experiment 0


def location(database: Path, experiment: str) -> str:
    """Return the folder of an experiment's artifacts."""
    return str(database.parent / ARTIFACTS / re.sub(r"[^\w.-]", "-", experiment))


def source(address: str) -> str:
    """Convert a model's address to the form that MLflow expects."""
    return Path(address).as_uri() if address.startswith("/") else address


def create(database: Path, make: Callable[[str], object]) -> None:
    """Create MLflow's database atomically, because MLflow can neither use nor complete a half-written one.

    Args:
        database: the file to create. If another process was quicker, its file stays.
        make: makes MLflow create a database at an address.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=database.parent, prefix=f".{database.name}-", suffix=".partial") as folder:
        fresh = Path(folder) / database.name
        make(sqlite(fresh))
        try:
            database.hardlink_to(fresh)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            fresh.rename(database)


def settle(database: Path) -> None:
    """Change addresses outside the database's folder to ones inside it, if the files now exist there.

    A database that is not writable, or not MLflow's, is not changed.
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
