"""The one file in a ZIP archive, as data sets are handed out."""

import re
import zipfile
from typing import IO

from xlnet.errors import RunError, UserError

SIGNATURE = b"PK\x03\x04"
NAMED = 5  # files that a message names


def member(raw: IO[bytes], uri: str) -> tuple[str, IO[bytes]]:
    """Name and content of an archive's file; what file managers add beside it is none.

    Args:
        raw: the archive, open at its beginning.
        uri: its name, for messages.

    Returns:
        An empty name and ``raw`` itself for a workbook, which is an archive too.

    Raises:
        UserError: there are several files or none, or it is encrypted.
        RunError: the archive is damaged.
    """
    try:
        archive = zipfile.ZipFile(raw)
        every = [one for one in archive.infolist() if not one.is_dir()]
        names = [one.filename for one in every]
        if "[Content_Types].xml" in names or "mimetype" in names:
            raw.seek(0)
            return "", raw
        found = [one for one in every if not re.match(r"(.*/)?(\.|__MACOSX)", one.filename)]
        if len(found) != 1:
            listed = ", ".join(repr(one.filename) for one in found[:NAMED])
            more = f" and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
            raise UserError(f"'{uri}' is a ZIP archive of {len(found)} files, not one: {listed}{more}; unpack it")
        if found[0].flag_bits & 1:
            raise UserError(f"'{uri}' is encrypted; unpack it")
        return found[0].filename, archive.open(found[0])
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise RunError(f"'{uri}' is damaged: {error}; replace the file") from None
