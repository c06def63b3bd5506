"""Answers of a registry in a file: kept while the file stays as it is, and forgotten with any change."""

import os
import sqlite3
from pathlib import Path

from xlnet.registry.cache import AnswerCache


def database(path: Path) -> Path:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE models (name TEXT)")
    return path


def test_an_answer_is_kept_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    database(file)
    AnswerCache(file).put("champion", "with champion 1")
    assert AnswerCache(file).get("champion") == "with champion 1"
    found = file.stat()
    with sqlite3.connect(file) as connection:
        connection.execute("INSERT INTO models VALUES ('a')")
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert AnswerCache(file).get("champion") is None, "the file's counter of changes tells, whatever its time says"


def test_an_answer_from_before_a_change_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    database(file)
    asked = AnswerCache(file)
    with sqlite3.connect(file) as connection:
        connection.execute("INSERT INTO models VALUES ('a')")
    asked.put("champion", "with champion 1")
    assert AnswerCache(file).get("champion") is None


def test_of_servers_absent_and_damaged_files_nothing_is_known(tmp_path: Path) -> None:
    for file in (None, tmp_path / "absent.db"):
        AnswerCache(file).put("champion", "with champion 1")
        assert AnswerCache(file).get("champion") is None
    assert not list(tmp_path.iterdir())
    file = database(tmp_path / "mlflow.db")
    for content in ("", "[]", '{"state": 1}', '{"state": "", "answers": []}'):
        (tmp_path / "mlflow.db-answers.json").write_text(content)
        assert AnswerCache(file).get("champion") is None
