"""Finds the state directory, and converts the addresses of files inside it.

Files in the state directory refer to each other by paths relative to it, so that it can be moved or copied. Programs
use absolute paths. :func:`stored` and :func:`restored` convert between the two.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOME = "XLNET_PIPELINE_HOME"
DEFAULT = ".xlnet-pipeline"
SQLITE = "sqlite:///"

# Earlier versions stored absolute paths. This part of such a path finds the file in a moved directory.
_WITHIN = re.compile(r".*/(runs/[^/]+/artifacts/.+)", re.DOTALL)


def home(given: str | Path | None = None) -> Path:
    """Return the state directory: ``given``, else ``XLNET_PIPELINE_HOME``, else ``./.xlnet-pipeline``."""
    return Path(given or os.environ.get(HOME) or DEFAULT).absolute()


def relative(address: str, folder: Path) -> str:
    """Make a path, or a sqlite file's address, relative to ``folder`` if it lies inside; return others unchanged."""
    scheme = SQLITE if address.startswith(SQLITE) else ""
    path = Path(address.removeprefix(scheme))
    if not path.is_absolute():
        return address
    for inner, outer in ((path, folder), (path.resolve(), folder.resolve())):  # as written, then links followed
        if inner.is_relative_to(outer):
            return f"{scheme}{inner.relative_to(outer).as_posix()}"
    return address


def absolute(address: str, folder: Path) -> str:
    """Undo :func:`relative`. Return an absolute path's place in ``folder`` if the file was moved there."""
    if not address or "://" in address:
        return address
    if not address.startswith("/"):
        return str(folder / address)
    moved = _WITHIN.fullmatch(address)
    here = folder / moved.group(1) if moved else None
    return str(here) if here is not None and here.exists() else address


def stored(value: Any, folder: Path) -> Any:
    """Return a JSON value in which each ``uri`` and ``…_uri`` inside ``folder`` is relative to it."""
    return _changed(value, lambda address: relative(address, folder))


def restored(value: Any, folder: Path) -> Any:
    """Undo :func:`stored`."""
    return _changed(value, lambda address: absolute(address, folder))


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [_changed(one, change) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: change(one) if isinstance(one, str) and (key == "uri" or key.endswith("_uri")) else _changed(one, change)
        for key, one in value.items()
    }
