"""Files as people have them: other delimiters and encodings, found or named, and said."""

import pytest
from test_readers import read, texts

from xlnet import recipe as recipes
from xlnet.errors import UserError

ROWS = [("a lovely film, warm", "pos"), ("dull", "neg"), ('says "hi"', "pos")]


def written(delimiter):
    quoted = [(text.replace('"', '""'), label) for text, label in ROWS]
    return f"text{delimiter}label\n" + "".join(f'"{text}"{delimiter}{label}\n' for text, label in quoted)


@pytest.mark.parametrize(("delimiter", "name"), [(";", "a semicolon"), ("\t", "a tab"), ("|", "a bar"), (",", "")])
def test_the_delimiter_of_a_csv_file_is_found_and_said(tmp_path, delimiter, name):
    told = []
    rows, rejects = read(tmp_path / "a.csv", written(delimiter), tell=told.append)
    assert (texts(rows), rejects) == (ROWS, [])
    assert len(told) == bool(name)
    assert not name or f"is split at {name}, for its first line holds no comma" in told[0]
    rows, _ = read(tmp_path / "b.csv", written(delimiter), delimiter=delimiter, tell=told.append)
    assert texts(rows) == ROWS
    assert len(told) == bool(name), "what the recipe says is no guess"


@pytest.mark.parametrize(
    "content",
    [
        "text\none; two\nthree\nfour; five\n",
        "text\nno comma\nin; any\nof; them; all\n",
        "text,x;label\na,b;c\n",
        '"text;label"\n"a;1"\n',
    ],
)
def test_a_delimiter_is_found_only_where_lines_agree(tmp_path, content):
    told = []
    with pytest.raises(UserError, match="has no column '(text|label)'"):
        read(tmp_path / "a.csv", content, tell=told.append)
    assert told == []


def test_a_delimiter_that_gives_one_column_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"its columns seem to be separated by ';'"):
        read(tmp_path / "a.csv", "text;label\na;1\n", delimiter=",")


@pytest.mark.parametrize("codec", ["utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_an_encoding_that_marks_itself_is_read_and_said(tmp_path, codec, name):
    told = []
    content = {"a.csv": "text,label\r\nschön 好😀,1\r\n", "a.tsv": "text\tlabel\nschön 好😀\t1\n"}
    content["a.jsonl"] = '{"text": "schön 好😀", "label": 1}\n'
    rows, rejects = read(tmp_path / name, content[name].encode(codec), tell=told.append)
    assert (texts(rows), rejects) == ([("schön 好😀", "1")], [])
    assert f"is read as {codec.upper()}, as its first bytes say" in told[0]


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_an_encoding_without_a_mark_is_named(tmp_path, codec):
    content = "text,label\nfine,1\n".encode(codec)
    with pytest.raises(UserError, match=f"looks like UTF-16 without a mark; set data.encoding to '{codec}'") as caught:
        read(tmp_path / "a.csv", content)
    assert str(caught.value).isprintable()
    assert texts(read(tmp_path / "a.csv", content, encoding=codec)[0]) == [("fine", "1")]


@pytest.mark.parametrize(
    ("codec", "text"), [("cp1252", "schön – „gut“"), ("latin-1", "é"), ("gb18030", "很好"), ("shift_jis", "良い")]
)
def test_an_encoding_may_be_named(tmp_path, codec, text):
    content = f"text,label\n{text},1\nfine,0\n".encode(codec)
    assert texts(read(tmp_path / "a.csv", content, encoding=codec)[0]) == [(text, "1"), ("fine", "0")]


def test_bytes_that_an_encoding_lacks_cost_their_row(tmp_path):
    content = "text,label\ngood,1\n".encode("utf-16-le") + b"\x00\xd8" + ",1\nfine,0\n".encode("utf-16-le")
    rows, rejects = read(tmp_path / "a.csv", content, encoding="utf-16-le")
    assert texts(rows)[0] == ("good", "1")
    assert [reject.line for reject in rejects] == [3]
    rows, rejects = read(tmp_path / "a.csv", b"text,label\n\x81\xff,1\nfine,0\n", encoding="gb18030")
    assert texts(rows) == [("fine", "0")]
    assert [reject.line for reject in rejects] == [2]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("data.encoding=utf9", "data.encoding is 'utf9'; allowed: auto, or an encoding that Python knows, such as"),
        ("data.encoding=locale", "data.encoding is 'locale'; allowed"),
        ("data.encoding=base64", "data.encoding is 'base64'; allowed"),
        ("data.delimiter=", "data.delimiter is ''; allowed: auto, or one character"),
        ("data.delimiter=ab", "data.delimiter is 'ab'; allowed: auto, or one character"),
        ('data.delimiter="\\n"', "data.delimiter is .*; allowed: auto, or one character"),
        ('data.delimiter="\'\\"\'"', "data.delimiter is .*; allowed: auto, or one character"),
    ],
)
def test_wrong_settings_say_what_is_allowed(setting, says):
    with pytest.raises(UserError, match=says):
        recipes.load(None, [setting])
