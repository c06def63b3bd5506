"""Resolves the registry's address, for the command line, the steps and the server alike."""

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from xlnet.errors import UserError
from xlnet.redaction import redacted

SQLITE = "sqlite:///"
VERTEX = "vertex://"
DATABASES = ("postgresql", "mysql", "mssql")  # a plus sign and a driver may follow
ALLOWED = "sqlite:///FILE, http(s)://HOST, postgresql://…, mysql://…, mssql://…, databricks, vertex://PROJECT/LOCATION"
_VERTEX_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,62}")  # model ids that Vertex AI allows
_UNSAFE = "%?#"  # characters with a special meaning in addresses; all others stay readable


def resolve(given: str = "", home: str | Path | None = None) -> str:
    """Return the registry's address: the given one, else the environment's, else a file in the state directory.

    The environment's is ``XLNET_REGISTRY``, else ``MLFLOW_TRACKING_URI``. The state directory is ``home``, else
    ``XLNET_PIPELINE_HOME``, else ``.xlnet-pipeline``.

    Raises:
        UserError: neither MLflow nor Vertex AI accepts this address.
    """
    found = given or os.environ.get("XLNET_REGISTRY") or os.environ.get("MLFLOW_TRACKING_URI")
    if not found:
        folder = Path(home or os.environ.get("XLNET_PIPELINE_HOME") or ".xlnet-pipeline")
        return sqlite(folder / "mlflow.db")
    if path := sqlite_file(found):
        return sqlite(path)
    _refuse(found)
    return found


def sqlite(file: str | Path) -> str:
    """Return the address of a sqlite file."""
    path = str(Path(file).absolute())
    return SQLITE + "".join(quote(character) if character in _UNSAFE else character for character in path)


def sqlite_file(address: str) -> Path | None:
    """Return the absolute path of the file that an address names; None for a server."""
    if not address.startswith(SQLITE) or len(address) == len(SQLITE):
        return None
    return Path(unquote(address.removeprefix(SQLITE).partition("?")[0])).absolute()


def _refuse(address: str) -> None:
    """Raise UserError if neither MLflow nor Vertex AI accepts such an address."""
    shown = redacted(address)
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"registry '{shown}' is not an address ({error}); allowed: {ALLOWED}") from None
    if address == "databricks" or parts.scheme == "databricks":
        return
    if parts.scheme in ("", "file") or len(parts.scheme) == 1:
        place = Path(unquote(parts.path if parts.scheme == "file" else address), "mlflow.db")
        raise UserError(f"registry '{shown}' is a directory, in which MLflow keeps no models; type {sqlite(place)}")
    served = parts.scheme in ("http", "https", "vertex") or parts.scheme.partition("+")[0] in DATABASES
    if not served or not host:
        raise UserError(f"registry '{shown}' is not the address of a registry; allowed: {ALLOWED}")


def check_name(address: str, name: str) -> None:
    """Raise UserError for a name that the registry would refuse or confuse with another. Sends no request.

    MLflow accepts every name that a recipe allows.
    """
    if address.startswith(VERTEX) and not _VERTEX_NAME.fullmatch(name):
        allowed = "1 to 63 small letters, digits, '-' and '_', not beginning with a digit or '-'"
        raise UserError(f"registry.name is '{name}'; allowed on Vertex AI: {allowed}, such as '{_proposal(name)}'")


def _proposal(name: str) -> str:
    """Propose a similar name that Vertex AI accepts."""
    near = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")[:60]
    return near if _VERTEX_NAME.fullmatch(near) else f"m-{near}".rstrip("-")
