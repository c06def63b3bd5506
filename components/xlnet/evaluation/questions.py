"""Reads the texts that ``predict`` was given: one text, a file of any format, or standard input."""

import dataclasses
import io
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from xlnet.data.addresses import is_remote
from xlnet.data.columns import Reject, Row
from xlnet.data.readers import FORMATS, file_format, read_rows
from xlnet.data.storage import Source, list_sources
from xlnet.data.values import BadValue, shown
from xlnet.data.walking import DATA_SUFFIXES
from xlnet.errors import UserError, nearest
from xlnet.evaluation.predictor import Predictor
from xlnet.recipe import DataRecipe

STDIN = "-"
KINDS = ("csv", "tsv", "jsonl", "parquet", "xlsx", "text")
LONGEST_NAME, LONGEST_PATH = 255, 1024  # bytes of a file's name, characters of a path; longer arguments are texts
PIPE_WAIT = 10.0  # seconds for a program to open the other end of a pipe
ADVICE = "if it is a text, put --text before it"


class Question(NamedTuple):
    """A checked text to predict, with the line and id that identify its answer."""

    text: str
    text_pair: str | None
    line: int
    id: str | None = None

    @property
    def place(self) -> dict[str, Any]:
        """Return the answer's fields that identify the text: the line, and the id if there is one."""
        return {"line": self.line} | ({} if self.id is None else {"id": self.id})


Asked = tuple[str, str | None] | Question | Reject


def texts_from(
    source: str, predictor: Predictor, pair: str | None = None, form: str | None = None, is_text: bool = False
) -> Iterator[Asked]:
    """Yield the texts that a command line names, checked as the server checks its requests.

    Args:
        source: ``-`` for standard input; a file, which is read as the model's training data was (plain text: one text
            per line); otherwise the text itself.
        predictor: the model, whose recipe names the columns.
        pair: second text, if ``source`` is the text itself.
        form: format of a file or of standard input; None takes it from the file's extension, and reads one text per
            line from standard input.
        is_text: treat the source as a text even if it looks like a file.

    Raises:
        UserError: there is no such file, or this model cannot take such texts.
    """
    if form not in (None, *KINDS):
        raise UserError(f"--format is '{form}'; allowed: {', '.join(KINDS)}{nearest(str(form), KINDS)}")
    if is_text or not _names_file(source):
        if form is not None:
            raise UserError(f"--format {form} goes with a file or with -, not with a text")
        _refuse_pairing(predictor, pair is not None, "--pair TEXT gives the second text", "leave out --pair")
        return _checked(predictor, [Row(source, pair, "", None, 1)], placed=False)
    if pair is not None:
        what = "standard input" if source == STDIN else f"the file '{source}'"
        raise UserError(f"--pair goes with a text, not with {what}; give the pairs a column of their own")
    if source == STDIN:
        return _of_stream(predictor, _stdin(), "standard input", form)
    if not is_remote(source) and not Path(source).is_file():
        return _of_stream(predictor, _opened_pipe(source), source, form)
    return _of_file(predictor, source, form)


def _names_file(source: str) -> bool:
    """Whether the argument names an existing file; UserError if it only looks like a file's name."""
    if source == STDIN or is_remote(source):
        return True
    if not source:
        return False
    path = Path(source)
    try:
        is_there, is_directory = path.exists(), path.is_dir()
    except OSError:  # too long for a file's name
        return False
    if is_directory:
        raise UserError(f"'{source}' is a directory; name a file in it, or {ADVICE}")
    if is_there or not _looks_like_path(source):
        return is_there
    if path.is_symlink():
        raise UserError(f"{shown(source)} is a link to {shown(os.readlink(source))}, which does not exist; {ADVICE}")
    folder = path.parent
    near = nearest(path.name, [entry.name for entry in folder.iterdir()]) if folder.is_dir() else ""
    raise UserError(f"there is no file {shown(source)}{near}; {ADVICE}")


def _looks_like_path(source: str) -> bool:
    """Whether the argument has a path separator or a known extension, and is short enough for a path."""
    names = [name.encode(errors="surrogatepass") for name in source.split(os.sep)]
    long = len(source) > LONGEST_PATH or any(len(name) > LONGEST_NAME for name in names)
    if long or "\n" in source or "\0" in source or not source.strip():
        return False
    return os.sep in source or source.lower().removesuffix(".gz").endswith(DATA_SUFFIXES)


def _refuse_pairing(predictor: Predictor, has_pair: bool, if_missing: str, if_given: str) -> None:
    if reason := predictor.pairing(has_pair):
        raise UserError(f"there is {reason}; {if_given if has_pair else if_missing}")


def _of_file(predictor: Predictor, source: str, form: str | None) -> Iterator[Asked]:
    sources = list_sources("predict", (source,))
    if len(sources) > 1:
        raise UserError(f"'{source}' stands for {len(sources)} files; name one of them")
    (file,) = sources
    kept = predictor.recipe.format
    if form is None and not file.name.endswith((*FORMATS, ".txt")):
        if kept == "auto":
            raise UserError(
                f"the name '{source}' does not tell the file's format; add --format {', '.join(KINDS[:-1])} or text"
            )
        form = kept
    form = file_format(file, dataclasses.replace(predictor.recipe, format=form or "auto"))
    if form == "text":
        _refuse_lines(predictor)
    return _checked(predictor, _rows(predictor, file, form))


def _of_stream(predictor: Predictor, stream: IO[bytes] | IO[str], name: str, form: str | None) -> Iterator[Asked]:
    if form in (None, "text"):
        _refuse_lines(predictor)
        return _checked(predictor, _lines(stream, predictor.recipe.max_record_bytes))
    return _checked(predictor, _kept(predictor, stream, name, form))


def _refuse_lines(predictor: Predictor) -> None:
    other = "give a file with both columns, or lines with --format jsonl, csv or tsv"
    _refuse_pairing(predictor, False, other, "")


def _kept(predictor: Predictor, stream: IO[Any], name: str, form: str) -> Iterator[Row | Reject]:
    """Read rows from a temporary copy of a stream, because formats other than plain text need to seek."""
    with tempfile.TemporaryFile() as file:
        while piece := stream.read(1 << 20):
            file.write(piece.encode(errors="surrogateescape") if isinstance(piece, str) else piece)
        file.seek(0)
        yield from _rows(predictor, Source(name, 0, ""), form, cast(IO[bytes], file))


def _rows(predictor: Predictor, source: Source, form: str, file: IO[bytes] | None = None) -> Iterator[Row | Reject]:
    recipe: DataRecipe = dataclasses.replace(predictor.recipe, format=form)
    optional = {"id": "id" if recipe.id is None else recipe.id}
    if predictor.pairs is None:
        optional["text_pair"] = "text_pair"
    return read_rows(source, recipe, labelled=False, optional=optional, file=file)


def _stdin() -> IO[Any]:
    if sys.stdin is None:
        raise UserError("there is no standard input; name a file")
    return getattr(sys.stdin, "buffer", sys.stdin)


def _opened_pipe(source: str) -> IO[bytes]:
    """Open a named pipe, or a terminal or pipe of ``/dev/fd``.

    Raises:
        UserError: it is a socket or another device, or nobody opens the pipe for writing.
    """
    mode = Path(source).stat().st_mode
    if not stat.S_ISFIFO(mode):
        if stat.S_ISCHR(mode) and os.path.realpath(source).startswith(("/dev/pts/", "/dev/tty", "/dev/console")):
            return Path(source).open("rb")
        raise UserError(f"'{source}' is a {'socket' if stat.S_ISSOCK(mode) else 'device'}; name a file or a pipe")
    opened: Future[IO[bytes]] = Future()

    def wait() -> None:
        file = Path(source).open("rb")  # noqa: SIM115 (its reader closes it)
        opened.set_result(file)

    threading.Thread(target=wait, daemon=True).start()
    try:
        return opened.result(PIPE_WAIT)
    except TimeoutError:
        raise UserError(f"'{source}' is a named pipe to which nobody writes ({PIPE_WAIT:.0f} s); name a file") from None


def _lines(stream: IO[Any], longest: int) -> Iterator[Row | Reject]:
    """Yield one text per line, as soon as the line arrives."""
    binary = not isinstance(stream, io.TextIOBase)
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape") if binary else cast(io.TextIOBase, stream)
    try:
        number = 0
        while line := text.readline(longest):
            number += 1
            if len(line) < longest or line.endswith("\n"):
                yield Row(line.rstrip("\n"), None, "", None, number)
                continue
            while (rest := text.readline(longest)) and not rest.endswith("\n"):
                pass
            yield Reject(number, f"line is too long: more than {longest} characters")
    finally:
        if binary:
            text.detach()  # otherwise standard input would be closed with it


def _checked(predictor: Predictor, rows: Any, placed: bool = True) -> Iterator[Asked]:
    """Turn rows into questions, or into rejects if the model cannot take them."""
    for row in rows:
        if isinstance(row, Reject):
            yield row
            continue
        try:
            text, pair = predictor.check(row.text, row.text_pair)
            yield Question(text, pair, row.line, row.id) if placed else (text, pair)
        except BadValue as bad:
            yield Reject(row.line, bad.reason)
