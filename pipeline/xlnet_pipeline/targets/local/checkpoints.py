"""Lists and removes the checkpoints of unfinished trainings in a directory or a bucket."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlnet.data import objects
from xlnet.errors import UserError, nearest
from xlnet_pipeline.targets.local import removal

SHORT = 12  # characters of a name that a person reads
_ABOUT, _LOCK, _PROGRAMS = "about.json", "lock", "programs"


@dataclass(frozen=True)
class Place:
    """The checkpoints of one training."""

    name: str
    root: str  # directory or gs:// address
    path: Path | None  # None if they are in a bucket
    step: int  # of the newest complete checkpoint; 0 if there is none
    size: int  # bytes
    age: float  # seconds since it was last written
    in_use: bool  # a process of this machine holds its lock
    about: dict[str, Any]  # recipe, dataset and classes of the training

    @property
    def short(self) -> str:
        """The beginning of the name, as lists show it."""
        return self.name[:SHORT]

    @property
    def data(self) -> str:
        """The names of the training's input files, at most three."""
        train = self.about.get("recipe", {}).get("data", {}).get("train") or []
        return ", ".join(str(one).rpartition("/")[2] for one in ([train] if isinstance(train, str) else train)[:3])


def folder(home: Path) -> str:
    """Return the address of all checkpoints: ``XLNET_CHECKPOINTS``, or else ``checkpoints`` in the state directory."""
    return os.environ.get("XLNET_CHECKPOINTS") or str(home / "checkpoints")


def found(home: Path) -> list[Place]:
    """List the checkpoints of all trainings, the newest first."""
    root = folder(home)
    places = _in_bucket(root) if objects.is_remote(root) else _in_directory(Path(root))
    return sorted(places, key=lambda place: place.age)


def choose(name: str, known: list[Place]) -> Place:
    """Return the checkpoints that a name, or a unique beginning of it, stands for.

    Raises:
        UserError: no name begins like this, or several do.
    """
    matches = [place for place in known if name and place.name.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"checkpoints '{name}' could be {', '.join(one.name for one in matches)}; type more of it")
    names = [place.short for place in known]
    hint = nearest(name, names) or (f"; there are: {', '.join(names)}" if names else "; there are none")
    raise UserError(f"no checkpoints are named '{name}'{hint}")


def remove(place: Place, home: Path) -> str:
    """Remove a training's checkpoints unless a process is writing them. Return the error, empty if there was none."""
    if place.path is None:
        for blob in objects.listing(f"{place.root}/"):
            objects.delete(blob.uri)
        return ""
    return remove_at(place.path, home)


def remove_at(path: Path, home: Path) -> str:
    """Remove the checkpoints in a directory unless a process is writing them. Return the error, empty if none."""
    with _locked(path) as free:
        return removal.remove(path, home) if free else "a training is using them"


def _in_directory(root: Path) -> Iterator[Place]:
    for path in sorted(root.glob("*")):
        if path.name.startswith(".") or path.name == _PROGRAMS or not (path / _ABOUT).is_file():
            continue
        files = [one for one in path.rglob("*") if one.is_file() and one.name != _LOCK]
        steps = [one.parent.name for one in files if one.match("step-*/manifest.json")]
        with _locked(path) as free:
            yield Place(
                name=path.name,
                root=str(path),
                path=path,
                step=_step(steps),
                size=sum(one.stat().st_size for one in files),
                age=max(0.0, time.time() - max(one.stat().st_mtime for one in files)),
                in_use=not free,
                about=_read((path / _ABOUT).read_bytes()),
            )


def _in_bucket(root: str) -> Iterator[Place]:
    prefix = objects.split(f"{root.rstrip('/')}/")[1]
    groups: dict[str, list[Any]] = {}
    for blob in objects.listing(f"{root.rstrip('/')}/"):
        name, _, rest = blob.name.removeprefix(prefix).partition("/")
        if rest and name != _PROGRAMS:
            groups.setdefault(name, []).append(blob)
    for name, blobs in groups.items():
        address = f"{root.rstrip('/')}/{name}"
        steps = [blob.name.split("/")[-2] for blob in blobs if blob.name.endswith("/manifest.json")]
        if not any(blob.name.endswith(f"/{_ABOUT}") for blob in blobs):
            continue
        yield Place(
            name=name,
            root=address,
            path=None,
            step=_step(steps),
            size=sum(int(blob.size) for blob in blobs),
            age=max(0.0, time.time() - max(blob.updated.timestamp() for blob in blobs)),
            in_use=False,  # a bucket has no locks
            about=_read(objects.read(f"{address}/{_ABOUT}")),
        )


def _step(names: list[str]) -> int:
    return max((int(name.split("-")[1]) for name in names if name.split("-")[1].isdigit()), default=0)


def _read(content: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        value = json.loads(content)
        return value if isinstance(value, dict) else {}
    return {}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the place's lock if it is free; yield whether it was free."""
    try:
        lock = (path / _LOCK).open("a+")
    except OSError:
        yield True
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
