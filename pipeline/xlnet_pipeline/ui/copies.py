"""Copies the few files of a remote artifact that pages show. This runs in the helper process."""

from pathlib import Path

from xlnet import provenance
from xlnet.data import objects
from xlnet.errors import Missing


def fetch(uri: str, names: tuple[str, ...], folder: str) -> int:
    """Copy files of an artifact from a bucket; return how many of them exist.

    An artifact never changes, so each file is copied only once.

    Args:
        uri: the artifact's address.
        names: names of files in the artifact, such as ``metrics.json``.
        folder: the local directory for the copies.

    Raises:
        UserError: the bucket denies access.
        RunError: the bucket does not answer.
    """
    count = 0
    for name in names:
        file = Path(folder, name)
        if not file.is_file():
            try:
                content = objects.read(f"{uri.rstrip('/')}/{name}")
            except Missing:
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            provenance.replace_file(file, content)
        count += 1
    return count
