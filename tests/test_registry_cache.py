"""Answers about a registry's file: kept while the file stays as it is, and forgotten with any change."""

import os
import sqlite3
from pathlib import Path
from typing import NoReturn

import pytest

from xlnet.registry.cache import answer


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE models (name TEXT)")
    return path


def change(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("INSERT INTO models VALUES ('a')")


def unasked() -> NoReturn:
    raise AssertionError("the answer is known")


@pytest.mark.parametrize("found", ["with champion 1", [], "", None, {"a": [1]}])
def test_an_answer_is_kept_until_the_file_changes(file: Path, found: object) -> None:
    assert answer(file, "champion", lambda: found) == found
    assert answer(file, "names", list) == []
    assert answer(file, "champion", unasked) == found
    before = file.stat()
    change(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert answer(file, "champion", lambda: "new") == "new", "the file's counter of changes tells, whatever its time"


def test_an_answer_from_before_a_change_is_not_kept(file: Path) -> None:
    assert answer(file, "champion", lambda: change(file) or "old") == "old"
    assert answer(file, "champion", lambda: "new") == "new"


def test_of_servers_and_absent_files_nothing_is_kept(tmp_path: Path) -> None:
    for place in (None, tmp_path / "absent.db"):
        assert [answer(place, "champion", lambda number=number: number) for number in range(2)] == [0, 1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "[]", '{"state": 1}', '{"state": "", "answers": []}'])
def test_damaged_answers_are_asked_again(file: Path, content: str) -> None:
    file.with_name("mlflow.db-answers.json").write_text(content)
    assert answer(file, "champion", lambda: 1) == 1
    assert answer(file, "champion", unasked) == 1
