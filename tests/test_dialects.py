"""Files as people have them: other delimiters and encodings, found or named, and said."""

import csv
import gzip
import io
import json
import random
import zipfile

import pytest
from test_readers import read, texts

from xlnet import recipe as recipes
from xlnet.data.readers import Reject, read_rows
from xlnet.data.storage import list_sources
from xlnet.errors import RunError, UserError

ROWS = [("a lovely film, warm", "pos"), ("dull", "neg"), ('says "hi"', "pos")]


def written(delimiter):
    quoted = [(text.replace('"', '""'), label) for text, label in ROWS]
    return f"text{delimiter}label\n" + "".join(f'"{text}"{delimiter}{label}\n' for text, label in quoted)


@pytest.mark.parametrize(("delimiter", "name"), [(";", "a semicolon"), ("\t", "a tab"), ("|", "a bar"), (",", "")])
def test_the_delimiter_of_a_csv_file_is_found_and_said(tmp_path, delimiter, name):
    told = []
    rows, rejects = read(tmp_path / "a.csv", written(delimiter), tell=told.append)
    assert (texts(rows), rejects) == (ROWS, [])
    assert [one for one in told if "is split" in one] == told[: bool(name)]
    assert not name or f"is split at {name}, for its first line holds no comma" in told[0]
    told.clear()
    rows, _ = read(tmp_path / "b.csv", written(delimiter), delimiter=delimiter, tell=told.append)
    assert texts(rows) == ROWS
    assert not [one for one in told if "is split" in one], "what the recipe says is no guess"


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


@pytest.mark.parametrize("text", ["\r0\n", "a\rb\nc", "a\n\r", "one\r\rtwo\n\nthree\rfour"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_carriage_returns_in_quotes_belong_to_the_text(tmp_path, text, ends):
    rows, rejects = read(tmp_path / "a.csv", f'text,label{ends}"{text}x",neg{ends}'.encode())
    assert (texts(rows), rejects) == ([(f"{text}x", "neg")], [])


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
        ("data.quoting=yes", "data.quoting is 'yes'; allowed: auto, doubled, backslash, none"),
        ("data.quote=<<", "data.quote is '<<'; allowed: auto, or one character"),
    ],
)
def test_wrong_settings_say_what_is_allowed(setting, says):
    with pytest.raises(UserError, match=says):
        recipes.load(None, [setting])


SENTENCES = {
    "cp1252": "Schöne Grüße für dich, wir hören uns später",
    "koi8-r": "Это очень хороший отель, номер был чистый",
    "cp1251": "Это очень хороший отель, номер был чистый",
    "gb18030": "这个酒店非常好，房间很大",
    "cp1253": "Πολύ καλό ξενοδοχείο, ευχαριστώ",
}


@pytest.mark.parametrize("codec", SENTENCES)
def test_an_encoding_is_guessed_from_many_lines_and_said(tmp_path, codec):
    told = []
    content = "text\tlabel\n" + "".join(f"{SENTENCES[codec]} {i}\t{i % 2}\n" for i in range(40))
    rows, rejects = read(tmp_path / "a.tsv", content.encode(codec), tell=told.append)
    assert (len(rows), rejects) == (40, [])
    assert rows[0].text == f"{SENTENCES[codec]} 0"
    assert len(told) == 1
    assert "is not UTF-8 and is read as" in told[0]
    assert f"such as '{SENTENCES[codec][:10]}" in told[0], "the guess can be judged"
    assert told[0].endswith("data.encoding says otherwise")


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (0, 4),  # too few to guess from
        (1, 30),  # UTF-8, damaged
    ],
)
def test_damaged_utf_8_is_no_other_encoding(tmp_path, good, bad):
    told = []
    raw = b"text,label\n" + "schön,1\n".encode() * good + "schön,1\n".encode("cp1252") * bad
    rows, rejects = read(tmp_path / "a.csv", raw, tell=told.append)
    assert (len(rows), len(rejects), told) == (good, bad, [])
    assert "not UTF-8" in rejects[0].reason


@pytest.mark.parametrize("codec", ["cp932", "euc_jp", "cp949"])
def test_an_encoding_that_cannot_be_told_is_left_to_the_user(tmp_path, codec):
    told = []
    text = "이 호텔은 정말 좋습니다" if codec == "cp949" else "とても良いホテルです。"
    content = "".join(f"{text}{i},1\n" for i in range(40)).encode(codec)
    rows, rejects = read(tmp_path / "a.csv", content, text=0, label=1, tell=told.append)
    assert (len(rows), len(rejects)) == (0, 40)
    assert "is not UTF-8; set data.encoding, perhaps to " in told[0]
    assert codec in told[0]


@pytest.mark.parametrize(("first", "sign"), [("sep=;", ";"), ("sep=,\r", ","), ("\ufeffSEP=|", "|"), ("sep=\t", "\t")])
def test_the_first_line_of_a_spreadsheets_csv_names_the_delimiter(tmp_path, first, sign):
    told = []
    end = "\r\n" if first.endswith("\r") else "\n"
    content = f"{first.strip(chr(13))}{end}text{sign}label{end}a{sign}1{end}"
    rows, rejects = read(tmp_path / "a.csv", content, tell=told.append)
    assert (texts(rows), rejects) == ([("a", "1")], [])
    assert rows[0].line == 3
    assert told[0].endswith("as its first line says")


def test_a_second_delimiter_that_would_do_is_said(tmp_path):
    told = []
    read(tmp_path / "a.csv", "".join(f"well, text {i};neg\n" for i in range(9)), text=0, label=1, tell=told.append)
    assert "is split at a comma, though a semicolon would do, too; data.delimiter says otherwise" in told[0]


FIELDS = [("a", "pos"), ('he said "no"', "neg"), ("a\tb", "pos"), ("it's two\nlines", "neg"), ("", "pos"), ("x", "neg")]


def by_pandas(rows, delimiter="\t", **how):
    """What pandas' to_csv writes: it hands the rows to this module, with these arguments."""
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, lineterminator="\n", **how).writerows([("text", "label"), *rows])
    return file.getvalue()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, 'has fields in " quotes, such as'),
        ({"quoting": csv.QUOTE_ALL}, 'has fields in " quotes, such as'),
        ({"quoting": csv.QUOTE_NONNUMERIC}, 'has fields in " quotes'),
        ({"quotechar": "'"}, "has fields in ' quotes, such as"),
        ({"doublequote": False, "escapechar": "\\", "quoting": csv.QUOTE_ALL}, "in which a backslash escapes a quote"),
    ],
)
@pytest.mark.parametrize("delimiter", ["\t", ",", ";"])
def test_how_fields_are_quoted_is_found_and_said(tmp_path, how, said, delimiter):
    told = []
    content = by_pandas(FIELDS, delimiter, **how)
    rows, rejects = read(tmp_path / ("a.tsv" if delimiter == "\t" else "a.csv"), content, tell=told.append)
    assert texts(rows) == [row for row in FIELDS if row[0]]
    assert [one.reason for one in rejects] == ["empty text"]
    if delimiter == "\t" or "'" in said or "backslash" in said:
        assert said in told[-1]
        assert told[-1].endswith("data.quoting = 'none' keeps them")


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("quote", ['"', "'", "~"])
def test_quoting_may_be_given(tmp_path, quoting, quote):
    told = []
    content = by_pandas(FIELDS, quotechar=quote, quoting=quoting)
    rows, _ = read(tmp_path / "a.tsv", content, tell=told.append, quoting="doubled", quote=quote)
    assert (texts(rows), told) == ([row for row in FIELDS if row[0]], [])
    content = by_pandas(FIELDS, quotechar=quote, quoting=quoting, doublequote=False, escapechar="\\")
    rows, _ = read(tmp_path / "a.tsv", content, tell=told.append, quoting="backslash", quote=quote)
    assert (texts(rows), told) == ([row for row in FIELDS if row[0]], [])


def test_a_damaged_line_does_not_change_how_the_others_are_read(tmp_path):
    content = "text\tlabel\n" + '"says ""hi"""\t1\n' * 10 + '"broken\t0\nfine\t0\n'
    rows, rejects = read(tmp_path / "a.tsv", content)
    assert [row.text for row in rows] == ['says "hi"'] * 10 + ["fine"]
    assert [one.line for one in rejects] == [12]


def test_a_backslash_that_escapes_nothing_is_kept(tmp_path):
    content = 'text,label\n"C:\\new, \\"old\\" and \\\\x",1\na\\b,0\n'
    rows, rejects = read(tmp_path / "a.csv", content, quoting="backslash")
    assert (texts(rows), rejects) == ([('C:\\new, "old" and \\x', "1"), ("a\\b", "0")], [])


BARE = ['"half a quote', 'says "hi"', '"Begin," he said, "now"', '" "', 'ends so "', "it's", "plain"]


@pytest.mark.parametrize("extra", [[], ['"Hello there."'] * 3, ["'quoted'"]])
def test_quotes_of_a_published_tsv_are_kept_without_a_word(tmp_path, extra):
    told = []
    lines = [*BARE, *extra] * 3
    content = "text\tlabel\n" + "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(lines))
    rows, rejects = read(tmp_path / "a.tsv", content, tell=told.append)
    assert [row.text for row in rows] == lines
    assert (rejects, told) == ([], [])


@pytest.mark.parametrize("above", [0, 300])
def test_kept_quotes_that_may_be_quotations_are_said(tmp_path, above):
    told = []
    content = "text\tlabel\n" + "plain\t1\n" * above + ('"says ""hi"""\t0\n' if above else '"All of it."\t0\n')
    rows, rejects = read(tmp_path / "a.tsv", content + ('bare "s\t0\n' if above else ""), tell=told.append)
    assert len(rows) + len(rejects) == above + 1 + bool(above)
    assert "whose quotes are kept; data.quoting = 'doubled' takes them off" in told[0]


def test_published_sets_are_read_as_they_were_written(shared_data):
    """SST-2 holds bare quotes; what is called RTE here was written by a program that quotes, every time."""
    for name, columns, rows, said in (
        ("sst2/dev.tsv", {"text": "content"}, 872, False),
        ("rte/train.tsv", {"text": "sentence1", "text_pair": "sentence2"}, 2490, True),
        ("rte/dev.tsv", {"text": "sentence1", "text_pair": "sentence2"}, 277, True),
    ):
        told = []
        (source,) = list_sources("data.train", (str(shared_data / name),))
        found = list(read_rows(source, recipes.Recipe().replace(data=columns).data, tell=told.append))
        assert (len(found), [one for one in found if isinstance(one, Reject)]) == (rows, [])
        assert [one for one in told if "the quotes are taken off" in one] == told[: len(told) if said else 0]
        assert not said or not [one for one in found if '""' in one.text]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('text, label\n"one, two", 1\nthree, 0\n', ""),
        ('label, text\n1, "one, two"\n0, "three"\n', "has spaces before its quotes"),
        ('text, "label"\n"one, two", "1"\nthree, "0"\n', "has spaces before its quotes"),
        ('id; label; text\n1; 1; "one, two"\n2; 0; "three"\n', "has spaces before its quotes"),
    ],
)
def test_spaces_before_quotes_are_left_out_and_said(tmp_path, content, said):
    told = []
    rows, rejects = read(tmp_path / "a.csv", content, tell=told.append)
    assert (texts(rows), rejects) == ([("one, two", "1"), ("three", "0")], [])
    assert bool(said) == any(said in one for one in told if said)


OTHER_FILES = {
    b"PAR1\x15\x04": "is a Parquet file; set data.format to 'parquet'",
    gzip.compress(gzip.compress(b"text,label\n")): "is compressed twice; decompress it once",
    b"BZh91AY&SY": "is compressed with bzip2",
    b"\x89PNG\r\n\x1a\n\0": "is a picture",
    b"version https://git-lfs.github.com/spec/v1\noid": "is a pointer of Git LFS.*git lfs pull",
    b"\n<!DOCTYPE html>\n<html>": "is a page of HTML or XML",
    b"\x7fELF\x02\x01" + bytes(70) + b"\ta\tb\n\x03": "is not text: 71 of its first 82 characters are control",
    random.Random(0).randbytes(70_000): "is not text: .* name the file with the rows, or set data.encoding",
}


@pytest.mark.parametrize("content", OTHER_FILES, ids=list(OTHER_FILES.values()))
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.txt"])
def test_what_is_no_text_says_what_it_is(tmp_path, name, content):
    with pytest.raises(UserError, match=OTHER_FILES[content]):
        read(tmp_path / name, content, label="file" if name == "a.txt" else "label")


WRITTEN = [{"text": 'a "b" [c], {d}', "label": 1}, {"text": "é 😀\nnext", "label": 0}, {"text": "", "label": 1}]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(WRITTEN),
        json.dumps(WRITTEN, indent=2),
        json.dumps(WRITTEN, ensure_ascii=False, indent="\t").replace("\n", "\r\n"),
        "\ufeff" + json.dumps(WRITTEN, separators=(",", ":")),
        "\n".join(json.dumps(one, indent=2) for one in WRITTEN),
        "".join(json.dumps(one, indent=1) + "\n\n" for one in WRITTEN),
        json.dumps([WRITTEN[0], *[{"text": "x" * 40_000, "label": 1}] * 10, *WRITTEN[1:]], indent=1),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_json_arrays_and_objects_over_many_lines(tmp_path, name, content):
    raw = content.encode()
    rows, rejects = read(tmp_path / name, gzip.compress(raw) if name.endswith("gz") else raw)
    found = [one for one in texts(rows) if not one[0].startswith("xxx")]
    assert found == [(WRITTEN[0]["text"], "1"), (WRITTEN[1]["text"], "0")]
    assert [one.reason for one in rejects] == ["empty text"]
    assert len(rows) + len(rejects) == content.count('"label"')
    lines = content.split("\n")
    assert all(lines[one.line - 1].lstrip("\ufeff[ \t").startswith("{") for one in [*rows, *rejects])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[{"text": "a", "label": 1},\n{"text": "b", "label": 0}\n', r"below line 3: its closing '\]' is missing"),
        ('[{"text": "a", "label": 1},\n{"text": "b", "label: 0}]\n', "damaged at or below line 2: "),
        ('[{"text": "a", "label": 1}]\n[{"text": "b", "label": 0}]\n', "line 2: something follows its end"),
        ('[{"text": "a", "label": 1},\n\n{"text": "b", "label": 0} {}]', r"line 3: a comma or '\]' is missing"),
        ('{\n "text": "a",\n "label": 1\n}\n{\n "text": "b"', "damaged at or below line 5: "),
        ("[]", None),
        ('[{"text": "a", "label": 1}, 7, [1], null]', None),
    ],
)
def test_a_damaged_json_array_is_one_line_and_no_row_of_it_is_lost(tmp_path, content, says):
    if says:
        with pytest.raises(UserError, match=says):
            read(tmp_path / "a.json", content)
    else:
        rows, rejects = read(tmp_path / "a.json", content)
        assert len(rows) + len(rejects) == (0 if content == "[]" else 4)


def zipped(files):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return held.getvalue()


TABLE = "text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(2000))


@pytest.mark.parametrize("name", ["a.zip", "a.csv.zip", "a.csv", "A.ZIP"])
@pytest.mark.parametrize("beside", [(), ("__MACOSX/rows/._a.csv", "rows/.hidden")])
def test_the_one_file_of_a_zip_archive_is_read(tmp_path, name, beside):
    content = zipped({"rows/a.csv": TABLE, **dict.fromkeys(beside, "x")})
    rows, rejects = read(tmp_path / name, content)
    assert (len(rows), rejects) == (2000, [])


def test_a_zip_archive_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"is a ZIP archive of 2 files, not one: 'a.csv', 'b.csv'; unpack it"):
        read(tmp_path / "a.zip", zipped({"a.csv": TABLE, "b.csv": TABLE}))
    with pytest.raises(UserError, match="is a workbook or a document; if it is a workbook, set data.format"):
        read(tmp_path / "f.csv", zipped({"[Content_Types].xml": "x", "xl/workbook.xml": "x"}))
    with pytest.raises(UserError, match="'.*c.zip' has an unknown ending; set data.format to csv"):
        read(tmp_path / "c.zip", zipped({"rows.dat": TABLE}))
    whole = zipped({"a.csv": TABLE})
    with pytest.raises(RunError, match="is damaged: .*; replace the file"):
        read(tmp_path / "d.zip", whole[: len(whole) // 2])
    middle = len(whole) // 3
    with pytest.raises(RunError, match="is damaged: .*; replace the file"):
        read(tmp_path / "e.zip", whole[:middle] + b"damaged" * 9 + whole[middle + 63 :])


def test_lines_of_fasttext_are_found_and_other_lines_may_begin_with_their_label(tmp_path):
    content = "__label__pos a good film\n\n__label__neg  dull \n__label__a __label__b two\n__label__pos\n__label__ no\n"
    rows, rejects = read(tmp_path / "a.txt", content)
    assert texts(rows) == [("a good film", "pos"), (" dull ", "neg")]
    assert [(one.line, one.reason) for one in rejects] == [
        (4, "several labels: '__label__a' and '__label__b'"),
        (5, "empty text"),
        (6, "no label"),
    ]
    rows, _ = read(tmp_path / "d.txt", "__label__1 a\n__label__2 b\n".encode("utf-16"))
    assert texts(rows) == [("a", "1"), ("b", "2")]
    rows, _ = read(tmp_path / "b.txt", "pos a good film\nneg dull\n", format="label-first")
    assert texts(rows) == [("a good film", "pos"), ("dull", "neg")]
    rows, rejects = read(tmp_path / "c.txt", "0.5 half\nx none\n", format="label-first", task="regression")
    assert (texts(rows), rejects[0].reason) == ([("half", "0.5")], "label is not a number: 'x'")
