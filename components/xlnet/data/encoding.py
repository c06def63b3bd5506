"""Finds the encoding of a text file: by its byte order mark, as UTF-8, or by a detector's guess, which is reported.

A UTF-8 file with a few damaged bytes must not be taken for another encoding. So a guess needs several lines beyond
ASCII of which none is UTF-8, and a detector that recognises a language in them.
"""

import codecs
import re
from collections.abc import Callable

from xlnet.data.storage import Source
from xlnet.data.values import shown
from xlnet.errors import UserError

UTF_8 = "utf-8-sig"  # with or without a mark
# The longer mark first: UTF-32's begins with UTF-16's.
MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
FEWEST = 5  # lines that a guess is made from
UNSURE = 0.1  # up to this coherence, of 0 to 1, the detector mistook Japanese for Chinese in trials
# Candidates, the most common first: of two that fit a file equally well, the first is taken.
USUAL = ["cp1252", "cp1251", "koi8_r", "gb18030", "big5", "cp932", "euc_jp", "cp949", "cp1250", "cp1253", "cp1254"]
EAST_ASIAN = ["gb18030", "big5", "cp932", "euc_jp", "cp949"]
USUAL += ["cp1255", "cp1256", "iso8859_2"]


def find(head: bytes, source: Source, tell: Callable[[str], None]) -> str:
    """Return Python's name of the encoding of a file with these first bytes. Tell a guess, or the candidates for it.

    Raises:
        UserError: it looks like UTF-16 without a byte order mark.
    """
    for mark, name in MARKS.items():
        if head.startswith(mark):
            tell(f"'{source.uri}' is read as {name.upper()}, as its first bytes say")
            return name
    pairs = re.fullmatch(rb"(?:[^\0]\0){4}.*|(?:\0[^\0]){4}.*", head, re.DOTALL)  # no mark, but Latin letters
    if pairs is not None:
        name = "utf-16-le" if head[1] == 0 else "utf-16-be"
        raise UserError(f"'{source.uri}' looks like UTF-16 without a mark; set data.encoding to '{name}'")
    lines = [line for line in re.split(rb"[\r\n]+", head)[:-1] if not line.isascii()]
    if len(lines) < FEWEST or any(_reads("utf-8", [line]) for line in lines):
        return UTF_8
    return _guessed(lines, source, tell)


def check(head: bytes, given: str, source: Source) -> str:
    """Return Python's name of the recipe's encoding, in the variant that drops a byte order mark.

    Raises:
        UserError: the file's first bytes show that it is in another encoding.
    """
    name = codecs.lookup(given).name
    wide = name.startswith(("utf-16", "utf-32"))
    for mark, marked in MARKS.items():
        if head.startswith(mark):
            if name not in (marked, f"{marked}-{'le' if mark[0] in (0xFF,) else 'be'}"):
                raise _wrong(given, source, f"its first bytes say {marked.upper()}")
            return marked
    if wide and b"\n" in head and b"\0" not in head:
        raise _wrong(given, source, "it holds no byte that is 0")
    if name in MARKS.values() and head:
        raise UserError(
            f"data.encoding is {given!r}, but '{source.uri}' has no mark; set it to '{name}-le' or '{name}-be'"
        )
    if wide:
        return given
    lines = [(number, line) for number, line in enumerate(head.split(b"\n")[:-1], 1) if not line.isascii()]
    failing = [number for number, line in lines if not _reads(name, [line])]
    if len(lines) >= FEWEST and 2 * len(failing) > len(lines):
        count = f"{len(failing):,} of its first {len(lines):,} lines with characters beyond ASCII"
        raise _wrong(given, source, f"{count} cannot be decoded, such as line {failing[0]:,}")
    return UTF_8 if name == "utf-8" else given


def _wrong(given: str, source: Source, why: str) -> UserError:
    return UserError(f"data.encoding is {given!r}, but '{source.uri}' is in another one: {why}; set it to 'auto'")


def _reads(name: str, lines: list[bytes]) -> bool:
    try:
        for line in lines:
            line.decode(name)
    except UnicodeDecodeError:
        return False
    return True


def _guessed(lines: list[bytes], source: Source, tell: Callable[[str], None]) -> str:
    from charset_normalizer import from_bytes

    matches = list(from_bytes(b"\n".join(lines) + b"\n", cp_isolation=USUAL, preemptive_behaviour=False))
    if not matches:
        return UTF_8  # nothing reads it: its lines are rejects
    best = matches[0]
    if best.coherence <= UNSURE:
        names = [name for name in EAST_ASIAN if _reads(name, lines)] or [best.encoding]
        tell(f"'{source.uri}' is not UTF-8; set data.encoding, perhaps to {' or '.join(names)}")
        return UTF_8
    equal = [one for one in matches if (one.chaos, one.coherence) == (best.chaos, best.coherence)]
    name = next(name for name in USUAL if any(name in match.could_be_from_charset for match in equal))
    sample = lines[0].decode(name, "replace").strip()
    tell(
        f"'{source.uri}' is not UTF-8 and is read as {name}, a guess from {len(lines)} of its first lines, such as "
        f"{shown(sample)}; data.encoding says otherwise"
    )
    return name
