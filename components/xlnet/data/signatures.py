"""Recognises files that are not text by their beginning, so that a wrong extension is one line with a remedy."""

import re

from xlnet.data.storage import Source
from xlnet.errors import UserError

SIGNATURES: dict[bytes, tuple[str, str]] = {
    b"PAR1": ("a Parquet file", "set data.format to 'parquet', or name it so"),
    b"PK\x03\x04": ("a workbook or a document", "if it is a workbook, set data.format to 'xlsx'; else save it as CSV"),
    b"\xd0\xcf\x11\xe0": ("an old Office document", "save the table as CSV"),
    b"\x1f\x8b": ("compressed twice", "decompress it once"),
    b"BZh": ("compressed with bzip2", "decompress it, or compress it with gzip"),
    b"\xfd7zXZ\x00": ("compressed with xz", "decompress it, or compress it with gzip"),
    b"\x28\xb5\x2f\xfd": ("compressed with Zstandard", "decompress it, or compress it with gzip"),
    b"ARROW1": ("an Arrow file", "save it as Parquet"),
    b"SQLite format 3\x00": ("an SQLite database", "export the table as CSV"),
    b"\x89PNG\r\n\x1a\n": ("a picture", "name the file with the rows"),
    b"%PDF-": ("a PDF document", "export the table as CSV"),
    b"\x80\x04\x95": ("a Python pickle", "save the rows as Parquet or CSV"),
    b"version https://git-lfs": ("a pointer of Git LFS, without the data", "get them with 'git lfs pull'"),
}
PAGES = (b"<!doctype html", b"<html", b"<?xml")
# Neither white space nor among the characters that separate fields (1 to 3, 28 to 31) or end files (26).
CONTROL = re.compile("[\x00\x04-\x08\x0e-\x19\x1b\x7f]")
FEW = 64  # control characters: a file of so few may be text with some damaged rows, which become rejects one by one


def refuse(head: bytes, source: Source) -> None:
    """Raise UserError if a file's first bytes say that it is not text with rows."""
    for signature, (what, remedy) in SIGNATURES.items():
        if head.startswith(signature):
            raise UserError(f"'{source.uri}' is {what}; {remedy}")
    if head[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGES):
        raise UserError(f"'{source.uri}' is a page of HTML or XML, such as a server's answer; download the data itself")


def refuse_binary(start: str, source: Source) -> None:
    """Raise UserError if many of a file's first characters are control characters: above 64 of them, and above 2 %."""
    count = len(CONTROL.findall(start))
    if count > max(FEW, len(start) / 50):
        raise UserError(
            f"'{source.uri}' is not text: {count:,} of its first {len(start):,} characters are control characters; "
            "name the file with the rows, or set data.encoding if it has a rare one"
        )
