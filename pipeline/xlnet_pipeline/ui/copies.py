"""Copies the few files of a remote artifact that pages show. This runs in the helper process."""

from pathlib import Path

from xlnet.data import objects
from xlnet.errors import Missing


def fetch(uri: str, names: tuple[str, ...], folder: str) -> int:
    """Copy those files of an artifact in a bucket that exist, and return how many are in the folder.

    An artifact never changes, so a file that was copied is not asked for again.

    Args:
        uri: the artifact's address.
        names: of files in it, such as ``metrics.json``.
        folder: the local directory for them.

    Raises:
        UserError: the bucket denies access.
        RunError: it does not answer.
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
            aside = file.with_name(f".{file.name}.partial")
            aside.write_bytes(content)
            aside.replace(file)
        count += 1
    return count
