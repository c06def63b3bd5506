"""Readers: every format, every dirt, and no row that disappears."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xlnet import recipe as recipes
from xlnet.data.readers import Reject, Row, read_rows, silent
from xlnet.data.storage import list_sources
from xlnet.errors import RunError, UserError


def read(path, content=None, tell=silent, **data):
    """Rows and rejects of one file with the given content."""
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    recipe = recipes.Recipe().replace(data=data).data
    (source,) = list_sources("data.train", (str(path),))
    found = list(read_rows(source, recipe, tell=tell))
    return [row for row in found if isinstance(row, Row)], [row for row in found if isinstance(row, Reject)]


def texts(rows):
    return [(row.text, row.label) for row in rows]


def test_csv_with_quoted_newlines_commas_and_a_bom(tmp_path):
    content = '\ufefftext,label\n"two\nlines, and ""quotes""",pos\r\nplain,neg\n'
    rows, rejects = read(tmp_path / "a.csv", content)
    assert texts(rows) == [('two\nlines, and "quotes"', "pos"), ("plain", "neg")]
    assert [row.line for row in rows] == [2, 4]
    assert rejects == []


def test_tsv_takes_quotes_as_they_are(tmp_path):
    rows, rejects = read(tmp_path / "a.tsv", 'label\ttext\r\n1\t"half a quote\r\n0\tsays "hi"\n')
    assert texts(rows) == [('"half a quote', "1"), ('says "hi"', "0")]
    assert rejects == []


def test_columns_by_index_without_header_lose_no_row(tmp_path):
    content = "".join(f"row {i}\t{i % 2}\n" for i in range(1000))
    rows, _ = read(tmp_path / "a.txt", content, text=0, label=1)
    assert len(rows) == 1000
    rows, _ = read(tmp_path / "a.txt", content, text=0, label=1, header="yes")
    assert len(rows) == 999


def test_the_shipped_demo_has_all_its_rows():
    recipe = recipes.Recipe().replace(data={"text": 0, "label": 1}).data
    sources = list_sources("data.train", ("demo:uci_sentences",))
    rows = [row for source in sources for row in read_rows(source, recipe)]
    assert len(rows) == 2838
    assert not [row for row in rows if isinstance(row, Reject)]


@pytest.mark.parametrize(
    ("first", "is_header"),
    [
        ("label\tsentence", True),
        ("Label\tx", True),
        ("gold\tSentence", True),
        ("stance\tsome words", True),  # the other labels are numbers
        ("1\tlabel", False),
        ("2\tsentence number two", False),
        ("n/a\tfine", False),
        ("-\tfine", False),
    ],
)
def test_each_file_may_have_a_header_of_its_own(tmp_path, first, is_header):
    content = f"{first}\n1\ta\n0\tb\n1\tc\n"
    told = []
    rows, _ = read(tmp_path / "a.tsv", content, tell=told.append, text=1, label=0)
    assert len(rows) == 4 - is_header
    assert len(told) == is_header
    assert not told or told[0].endswith("is taken for a header; if it is a row, set data.header to 'no'")
    assert len(read(tmp_path / "a.tsv", content, text=1, label=0, header="yes")[0]) == 3
    assert len(read(tmp_path / "a.tsv", content, text=1, label=0, header="no")[0]) == 4


def test_json_lines(tmp_path):
    lines = [{"text": "a", "label": 1}, {"text": "b", "label": True}, {"text": None, "label": 1}, {"label": 1}, [1]]
    content = "".join(json.dumps(line) + "\n" for line in lines) + '{"text": "c"\n\n{"text": 5, "label": "x"}\n'
    rows, rejects = read(tmp_path / "a.jsonl", content)
    assert texts(rows) == [("a", "1"), ("b", "true")]
    assert [reject.line for reject in rejects] == [3, 4, 5, 6, 8]
    assert rejects[1].reason == "field is missing: 'text'"
    assert rejects[2].reason == "not a JSON object: list"
    assert rejects[3].reason.startswith("not JSON")
    assert rejects[4].reason == "text is int, not a string"


def test_parquet_by_name_and_by_index(tmp_path):
    table = pa.table({"other": [1, 2, 3], "text": ["a", "b", None], "label": [1, None, 0]})
    pq.write_table(table, tmp_path / "a.parquet")
    for columns in ({}, {"text": 1, "label": 2}):
        rows, rejects = read(tmp_path / "a.parquet", **columns)
        assert texts(rows) == [("a", "1")]
        assert [reject.reason for reject in rejects] == ["no label", "empty text"]
    with pytest.raises(UserError, match="no column 'txt'; it has: other, text, label; did you mean 'text'"):
        read(tmp_path / "a.parquet", text="txt")


def test_plain_text_takes_labels_from_names(tmp_path):
    (tmp_path / "pos").mkdir()
    rows, _ = read(tmp_path / "pos" / "reviews.txt", "one\n\ntwo\n", label="directory")
    assert texts(rows) == [("one", "pos"), ("two", "pos")]
    rows, _ = read(tmp_path / "pos" / "reviews.txt", "one\n", label="file")
    assert texts(rows) == [("one", "reviews")]
    with pytest.raises(UserError, match="set data.label to 'file' or 'directory'"):
        read(tmp_path / "pos" / "reviews.txt", "one\n")


def test_gzip_is_told_by_its_bytes(tmp_path):
    rows, _ = read(tmp_path / "a.csv", gzip.compress(b"text,label\na,1\n"))
    assert texts(rows) == [("a", "1")]
    with pytest.raises(RunError, match="is damaged"):
        read(tmp_path / "b.csv.gz", gzip.compress(b"text,label\n" + b"a,1\n" * 9999)[:60])


def test_dirty_rows_are_rejected_one_by_one(tmp_path):
    content = b"text\tlabel\nfine\t1\nb\xffd\t1\nnul\0byte\t1\n  \t1\nno label\t\nfour\tof\tthem\t1\n\nlast\t0"
    rows, rejects = read(tmp_path / "a.tsv", content)
    assert texts(rows) == [("fine", "1"), ("last", "0")]
    assert [(reject.line, reject.reason) for reject in rejects] == [
        (3, "not UTF-8: byte 0xff at column 2"),
        (4, "NUL byte"),
        (5, "empty text"),
        (6, "no label"),
        (7, "wrong number of columns: 4 instead of 2"),
    ]
    csv_rows, csv_rejects = read(tmp_path / "a.csv", content.replace(b"\t", b","))
    assert texts(csv_rows) == texts(rows)
    assert [reject.line for reject in csv_rejects] == [reject.line for reject in rejects]


def test_malformed_quotes_cost_no_more_than_their_record(tmp_path):
    rows, rejects = read(tmp_path / "a.csv", 'text,label\n"a"b,1\nfine,0\n"never closed,1\n')
    assert texts(rows) == [("fine", "0")]
    assert [reject.line for reject in rejects] == [2, 4]
    assert [reject.reason.partition(":")[0] for reject in rejects] == ["malformed CSV", "unclosed quotation"]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_line_endings(tmp_path, ending, name):
    separator = "," if name == "a.csv" else "\t"
    rows, rejects = read(tmp_path / name, ending.join([f"text{separator}label", f"a{separator}1", f"b{separator}0"]))
    assert texts(rows) == [("a", "1"), ("b", "0")]
    assert rejects == []


def test_emoji_chinese_and_a_giant_text(tmp_path):
    giant = "word " * 1_000_000
    rows, _ = read(tmp_path / "a.tsv", f"text\tlabel\n👍🏽 fine\t1\n很好\t1\n{giant}\t0\n")
    assert [row.text for row in rows] == ["👍🏽 fine", "很好", giant]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_million_columns(tmp_path, name):
    separator = "," if name == "a.csv" else "\t"
    header = separator.join(f"c{i}" for i in range(1_000_000))
    values = separator.join("x" for _ in range(1_000_000))
    rows, rejects = read(tmp_path / name, f"{header}\n{values}\nshort\n", text="c7", label="c999999")
    assert texts(rows) == [("x", "x")]
    assert rejects[0].reason == "wrong number of columns: 1 instead of 1000000"
    with pytest.raises(UserError, match=r"no column 'text'; it has: c0, .* and 999980 more") as caught:
        read(tmp_path / name)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("letter", ["x", "好"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_line_without_end_does_not_fill_the_memory(tmp_path, name, letter):
    comma = "," if name == "a.csv" else "\t"
    content = f"text{comma}label\n{letter * (3 << 18)}{comma}1\nfine{comma}0\n"
    rows, rejects = read(tmp_path / name, content, max_record_bytes=1 << 18)
    assert texts(rows) == [("fine", "0")]
    assert rejects == [(2, "line is too long: more than data.max_record_bytes = 262144")]


def test_wrong_columns_name_those_there_are(tmp_path):
    with pytest.raises(UserError, match="no column 'text'; it has: txt, label; did you mean 'txt'"):
        read(tmp_path / "a.csv", "txt,label\na,1\n")
    with pytest.raises(UserError, match="has 2 columns, so none with index 2; allowed: 0 to 1"):
        read(tmp_path / "a.csv", "a,1\n", text=0, label=2)
    with pytest.raises(UserError, match="data.header is 'no', but 'text' is a name"):
        read(tmp_path / "a.csv", "text,label\na,1\n", header="no")
    with pytest.raises(UserError, match="JSON Lines, whose columns have names; 0 is an index"):
        read(tmp_path / "a.jsonl", '{"text": "a"}\n', text=0)


def test_unusable_files_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match="is empty; give a file with rows"):
        read(tmp_path / "a.csv", "")
    with pytest.raises(UserError, match="unknown ending; set data.format to csv, tsv"):
        read(tmp_path / "a.data", "x")
    with pytest.raises(UserError, match="is not a Parquet file"):
        read(tmp_path / "a.parquet", "not parquet")


def test_pairs(tmp_path):
    rows, rejects = read(tmp_path / "a.tsv", "a\tb\tlabel\nx\ty\t1\nx\t\t1\n", text="a", text_pair="b")
    assert (rows[0].text, rows[0].text_pair) == ("x", "y")
    assert rejects[0].reason == "empty text_pair"


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("text,'label'\na,1\n", "no column 'label'; it has: text, 'label'; 'label' is there in quotes that belong"),
        ("Text,Label\na,1\n", "did you mean 'Text'|it has: Text, Label"),
        ("a lovely warm film,1\na dull one,0\n", "if that is a row and there is no header, give columns by index"),
        ("text,text,label\na,b,1\n", "has 2 columns named 'text', 0 and 1; give the index of one"),
        ("label\0,te\x1bxt\n", r"it has: label\\x00, te\\x1bxt"),
    ],
)
def test_a_header_that_does_not_fit_says_why(tmp_path, content, hint):
    with pytest.raises(UserError, match=hint) as caught:
        read(tmp_path / "a.csv", content)
    assert str(caught.value).isprintable()


def test_a_label_from_a_name_keeps_its_case(tmp_path):
    for name, label in (("Pos.txt", "Pos"), ("NEG.Txt.gz", "NEG"), ("a.b.TXT", "a.b"), ("plain", "plain")):
        rows, _ = read(tmp_path / name, "one\n", label="file", format="text")
        assert texts(rows) == [("one", label)]
    (tmp_path / "Très Bien").mkdir()
    rows, _ = read(tmp_path / "Très Bien" / "a.txt", "one\n", label="directory")
    assert texts(rows) == [("one", "Très Bien")]
    with pytest.raises(UserError, match=r"the file of '.*much.txt' is not a label: label is not a number: 'much'"):
        read(tmp_path / "much.txt", "one\n", label="file", task="regression")


@pytest.mark.parametrize(
    ("label", "outcome"),
    [
        ("9223372036854775807", "9223372036854775807"),
        ("-9007199254740993", "-9007199254740993"),
        ("9" * 5000, "9" * 5000),
        ("1.50", "1.5"),
        ("true", "true"),
        ('" pos "', "pos"),
        ('"--1"', "--1"),
        ("NaN", "label is not finite: nan"),
        ("-Infinity", "label is not finite: -inf"),
        ("1e400", "label is not finite: inf"),
        ("[1]", "label is list, not a string or a number"),
        ('{"a": 1}', "label is dict, not a string or a number"),
        ("null", "no label"),
        (r'"\ud83d"', "half of a surrogate pair: U+D83D at column 1"),
        (r'"a\u0000"', "NUL byte"),
        ('"\ufeffpos"', "pos"),
    ],
)
def test_labels_of_json(tmp_path, label, outcome):
    rows, rejects = read(tmp_path / "a.jsonl", '{"text": "a", "label": ' + label + "}\n")
    assert [row.label for row in rows] + [reject.reason for reject in rejects] == [outcome]


@pytest.mark.parametrize("text", [r'"\ud83d"', r'"a \udc00\ud83d"', r'"\udcff"', r'"a\u0000b"', "5", "[]", '"\ufeff"'])
def test_texts_of_json_that_are_none_are_rejects(tmp_path, text):
    content = f'{{"text": {text}, "label": 1}}\n{{"text": "fine \\ud83d\\ude00", "label": 1}}\n'
    rows, rejects = read(tmp_path / "a.jsonl", content)
    assert [row.text for row in rows] == ["fine 😀"]
    assert [reject.line for reject in rejects] == [1]


PARQUET = {
    "int64": (pa.array([2**63 - 1, None, -(2**53) - 1]), ["9223372036854775807", "no label", "-9007199254740993"]),
    "uint64": (pa.array([2**64 - 1, 0, 1], pa.uint64()), ["18446744073709551615", "0", "1"]),
    "double": (pa.array([1.5, float("nan"), float("inf")]), ["1.5", "label is not finite", "label is not finite"]),
    "bool": (pa.array([True, False, None]), ["true", "false", "no label"]),
    "binary": (pa.array([b"a", b"\xff", None]), ["label is bytes", "label is bytes", "no label"]),
    "list": (pa.array([[1], [], None]), ["label is list", "label is list", "no label"]),
    "struct": (pa.array([{"a": 1}, {"a": 2}, None]), ["label is dict", "label is dict", "no label"]),
    "dictionary": (pa.array(["x", "y", None]).dictionary_encode(), ["x", "y", "no label"]),
    "large string": (pa.array(["x", " y", ""], pa.large_string()), ["x", "y", "no label"]),
    "timestamp": (pa.array([0, 1, None], pa.timestamp("ns")), ["label is datetime", "unreadable value", "no label"]),
    "no UTF-8": (
        pa.array([b"a", b"b\xff", b"\xed\xa0\xbd"]).view(pa.string()),
        ["a", "not UTF-8: byte 0xff at column 2", "not UTF-8: byte 0xed at column 1"],
    ),
}


@pytest.mark.parametrize("kind", PARQUET)
def test_labels_of_parquet(tmp_path, kind):
    values, outcomes = PARQUET[kind]
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": values}), tmp_path / "a.parquet")
    rows, rejects = read(tmp_path / "a.parquet")
    found = sorted([(row.line, row.label) for row in rows] + [(one.line, one.reason) for one in rejects])
    assert [line for line, _ in found] == [1, 2, 3]
    assert all(got.startswith(outcome) for (_, got), outcome in zip(found, outcomes, strict=True)), found


def test_a_damaged_parquet_file_is_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"text number {i}" for i in range(9000)], "label": [i % 7 for i in range(9000)]})
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)
    whole = path.read_bytes()
    for place in (200, len(whole) // 3, len(whole) // 2):
        with pytest.raises((RunError, UserError), match=r"is damaged|is not a Parquet file") as caught:
            read(path, whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        assert str(caught.value).isprintable()
    undecodable = whole.replace(b"label", b"labe\xec")
    for content in (whole[:-20], whole[:100], b"PAR1" * 3, whole[:-4] + b"XXXX", undecodable):
        with pytest.raises(UserError, match="is not a Parquet file"):
            read(path, content)


def test_two_parquet_columns_of_one_name_are_refused(tmp_path):
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array([1])]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "text", "label"]), tmp_path / "a.parquet")
    for text in ("text", 0, 1):
        with pytest.raises(UserError, match="has 2 columns named 'text', 0 and 1; rename one"):
            read(tmp_path / "a.parquet", text=text)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a", "label": "1", "text": "b"}', "several fields of one name: 'text'"),
        ('{"text": "a", "label": "1", "label": "1"}', "several fields of one name: 'label'"),
        ('{"text": "a", "label": "1", "\\u0074ext": "b"}', "several fields of one name: 'text'"),
        ('{"text": "a", "label": "1", "more": 1, "more": 2}', None),
        ('{"text": "a", "label": "1", "more": {"text": 1, "text": 2}}', None),
    ],
)
def test_a_json_object_names_each_wanted_field_once(tmp_path, line, reason):
    rows, rejects = read(tmp_path / "a.jsonl", '{"text": "first", "label": 0}\n' + line + "\n")
    assert [(one.line, one.reason) for one in rejects] == ([(2, reason)] if reason else [])
    assert len(rows) == 2 - len(rejects)
