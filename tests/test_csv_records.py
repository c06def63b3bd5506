"""CSV records: quotes that are never closed, or closed far away, cost the line in which they open."""

import tracemalloc

import pytest
from test_readers import read, texts

from xlnet.data.readers import Row


def rows_of(count, start=0):
    return [f"sentence number {i},{'pos' if i % 2 else 'neg'}" for i in range(start, start + count)]


def content(lines, header="text,label"):
    return "\n".join([header, *lines]) + "\n"


def accounted(text, rows, rejects):
    """Every line below the header is a row's, or a reject's."""
    lines = text.count("\n") - 1
    return lines == sum(1 + row.text.count("\n") for row in rows) + len(rejects)


def test_a_quotation_that_never_closes_costs_its_own_line(tmp_path):
    lines = rows_of(1000)
    lines[499] = '"' + lines[499]
    rows, rejects = read(tmp_path / "a.csv", content(lines))
    assert (len(rows), len(rejects)) == (999, 1)
    assert rejects == [(501, "unclosed quotation: it holds more than data.max_record_lines = 500")]
    lines[499], lines[989] = lines[989], '"' + lines[989]
    rows, rejects = read(tmp_path / "a.csv", content(lines))
    assert rejects[-1].line == 991
    assert rejects[-1].reason == "unclosed quotation: the file ends in it"


@pytest.mark.parametrize("gap", [1, 2, 7, 400, 1000])
@pytest.mark.parametrize("label_first", [False, True])
def test_a_quotation_that_closes_in_a_later_row_glues_none(tmp_path, gap, label_first):
    lines = rows_of(1500)
    lines[299] = '"' + lines[299]
    lines[299 + gap] = lines[299 + gap].replace(",", '",')
    header = "text,label"
    if label_first:
        lines = [",".join(reversed(line.split(","))) for line in lines]
        header = "label,text"
    text = content(lines, header)
    rows, rejects = read(tmp_path / "a.csv", text)
    assert accounted(text, rows, rejects)
    assert not any("\n" in row.text for row in rows)
    assert len(rows) >= 1498
    assert rejects[0].line == 301
    assert rejects[0].reason.startswith("unclosed quotation")


def test_real_texts_of_many_lines_stay_whole(tmp_path):
    review = "Great, I liked it\n\nBut, pos\nis what others say, neg or not.\n" + "and on, it goes\n" * 400
    quoted = review.replace('"', '""')
    text = content([*rows_of(20), f'"{quoted}",pos', *rows_of(20)])
    rows, rejects = read(tmp_path / "a.csv", text)
    assert rejects == []
    assert texts(rows)[20] == (review, "pos")


def test_a_record_may_be_as_long_as_the_recipe_says(tmp_path):
    text = content(['"one\ntwo\nthree",pos', "fine,neg"])
    assert len(read(tmp_path / "a.csv", text, max_record_lines=3)[0]) == 2
    rows, rejects = read(tmp_path / "a.csv", text, max_record_lines=2)
    assert texts(rows) == [('three"', "pos"), ("fine", "neg")], "what follows the opening line is read anew"
    assert [reject.line for reject in rejects] == [2, 3], "each line of it counts"
    long = content([f'"{"x" * 600}\n{"y" * 600}",pos', "fine,neg"])
    rows, rejects = read(tmp_path / "a.csv", long, max_record_bytes=1024)
    assert texts(rows)[-1] == ("fine", "neg")
    assert rejects[0] == (2, "unclosed quotation: it holds more than data.max_record_bytes = 1024")


@pytest.mark.parametrize(
    ("damaged", "lost"),
    [
        ('"never closed', 1),
        ('"a"b,pos', 1),
        ('"",""",pos', 1),
        ('5" pipe,pos', 0),
        ('"quoted "" mark",pos', 0),
        ('"",pos', 1),
        ("one column", 1),
        ("a,b,pos", 1),
        ('",pos', 1),
        ('pos,"', 1),
    ],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_one_damaged_line_costs_itself_alone(tmp_path, damaged, lost, ends):
    lines = [*rows_of(50), damaged, *rows_of(50, 50)]
    rows, rejects = read(tmp_path / "a.csv", content(lines).replace("\n", ends))
    assert len(rejects) == lost
    assert len(rows) == 101 - lost
    assert all(reject.line == 52 for reject in rejects)


def test_a_quotation_with_too_many_columns_is_counted_line_by_line(tmp_path):
    lines = rows_of(100)
    lines[29], lines[33] = '"' + lines[29], 'closed", here,pos'
    text = content(lines)
    rows, rejects = read(tmp_path / "a.csv", text)
    assert len(rows) == 98, "the rows between are read"
    assert [reject.line for reject in rejects] == [31, 35]
    lines[30:33] = ["no rows", "these are", "at all"]
    rows, rejects = read(tmp_path / "a.csv", content(lines))
    assert len(rows) == 95
    assert [reject.line for reject in rejects] == [31, 32, 33, 34, 35]


def test_a_stray_carriage_return_costs_its_row_and_hides_none(tmp_path):
    lines = rows_of(100)
    lines[10] = "stray\rreturn,pos"
    rows, rejects = read(tmp_path / "a.csv", content(lines).encode())
    assert (len(rows), [reject.line for reject in rejects]) == (99, [12])
    lines[10:60] = ["\r".join(lines[10:60])]  # a part with the line ends of old Macs
    rows, rejects = read(tmp_path / "a.csv", content(lines).encode())
    assert (len(rows), [reject.line for reject in rejects]) == (50, [12] * 50)


def test_a_header_with_an_open_quotation_is_one_line(tmp_path):
    from xlnet.errors import UserError

    with pytest.raises(UserError, match=r"line 1 of .* should name the columns, .*: unclosed quotation"):
        read(tmp_path / "a.csv", content(rows_of(9), 'text,"label'))


def test_memory_stays_flat_in_a_file_that_is_one_quotation(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"' + ("word " * 40 + ",pos\n") * 10_000)
    read(path)  # caches are filled
    tracemalloc.start()
    from xlnet import recipe as recipes
    from xlnet.data.readers import read_rows
    from xlnet.data.storage import list_sources

    (source,) = list_sources("data.train", (str(path),))
    found = sum(isinstance(row, Row) for row in read_rows(source, recipes.Recipe().data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == 9_999
    assert peak < 1 << 20, "of 2 MB"


GLUED_START = {
    "closing": ['"first,pos', "second,neg", 'third",pos'],
    "two lines": ['"first,pos', 'second",neg'],
    "quotes in both": ['"first,pos', 'second,neg"'],
}


@pytest.mark.parametrize("lines", GLUED_START.values(), ids=GLUED_START)
@pytest.mark.parametrize("head", ["text,label\n", "first of all,pos\n", ""])
def test_rows_glued_at_the_very_start_are_told_by_the_labels_below(tmp_path, lines, head):
    if not head and lines[-1].endswith('"'):
        pytest.skip("a first record of one column is an error of its own")
    content = head + "\n".join(lines) + "\n" + "".join(f"text {i},{'pos' if i % 2 else 'neg'}\n" for i in range(40))
    names = {} if head.startswith("text") else {"text": 0, "label": 1}
    rows, rejects = read(tmp_path / "a.csv", content, **names)
    assert len(rows) + len(rejects) == len(lines) + 40 + head.startswith("first")
    assert [one.line for one in rejects][:1] == [2 if head else 1]
    assert len({row.text for row in rows} & {f"text {i}" for i in range(40)}) == 40


def test_real_texts_of_many_lines_at_the_start_stay_whole(tmp_path):
    first = '"one, good\ntwo, good\nthree, bad",neg\n'
    content = first + "".join(f'"text {i}\nmore, good",{"pos" if i % 2 else "neg"}\n' for i in range(400))
    rows, rejects = read(tmp_path / "a.csv", content, text=0, label=1)
    assert (len(rows), rejects) == (401, [])


@pytest.mark.parametrize("again", ["text,label\n", "\ufefftext,label\n", '"text","label"\r\n', " text,label\n"])
def test_the_header_of_a_joined_file_is_no_row(tmp_path, again):
    content = "text,label\na,1\nb,0\n" + again + "c,1\ntext,1\n"
    rows, rejects = read(tmp_path / "a.csv", content)
    assert [row.text for row in rows] == ["a", "b", "c", "text"]
    assert [(one.line, one.reason) for one in rejects] == [(4, "the header again")]


def test_invisible_characters_around_a_columns_name_do_not_hide_it(tmp_path):
    rows, rejects = read(tmp_path / "a.csv", "\ufeff\ufefftext,\u00a0label\u200b\na,1\n")
    assert ([(row.text, row.label) for row in rows], rejects) == ([("a", "1")], [])
