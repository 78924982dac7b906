"""Files of cells: what separates them, and headers as programs write them."""

import pytest

from inlay.data import load
from tests.data.rows import refused, write

ROWS = [{"text": "good, nice", "label": "pos"}, {"text": "bad", "label": "neg"}]


def table(delimiter, rows=ROWS):
    lines = ["text", *(f'"{row["text"]}"' for row in rows)]
    ends = ["label", *(row["label"] for row in rows)]
    return "".join(f"{a}{delimiter}{b}\r\n" for a, b in zip(lines, ends, strict=True))


def fields(path, **options):
    return [dict(example.fields) for example in load(path, **options)]


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_separator_is_told_by_the_header(tmp_path, ending, delimiter):
    path = write(tmp_path / f"a{ending}", table(delimiter))
    assert fields(path) == ROWS
    assert fields(path, delimiter=delimiter) == ROWS


def test_commas_in_cells_that_another_character_separates(tmp_path):
    path = write(tmp_path / "a.csv", "price, net;label\n1,5;x\n2;y\n")
    assert fields(path) == [
        {"price, net": "1,5", "label": "x"},
        {"price, net": "2", "label": "y"},
    ]
    plain = write(tmp_path / "b.csv", "text;label\nwell, well;x\nno;y\n")
    assert [row["text"] for row in fields(plain)] == ["well, well", "no"]


def test_one_column_has_no_separator(tmp_path):
    path = write(tmp_path / "a.csv", "text\na;b\nc;d\n")
    assert [row["text"] for row in fields(path)] == ["a;b", "c;d"]
    tabs = write(tmp_path / "b.tsv", "text\na, b\n")
    assert fields(tabs) == [{"text": "a, b"}]


def test_any_separator_can_be_named(tmp_path):
    path = write(tmp_path / "a.csv", "text~label\na~x\n")
    assert fields(path, delimiter="~") == [{"text": "a", "label": "x"}]
    tabs = write(tmp_path / "b.csv", "a,b\tc\n1,2\t3\n")
    for name in ("\t", "\\t", "tab"):
        assert fields(tabs, delimiter=name) == [{"a,b": "1,2", "c": "3"}]
    refused(path, "if '~' separates the cells, name it: delimiter='~'", need=("text",))
    refused(path, "delimiter='ab' is not one character", delimiter="ab")
    jsonl = write(tmp_path / "a.jsonl", '{"text": "a"}\n')
    refused(jsonl, "a delimiter is for .csv, .tsv", "leave it out for .jsonl", delimiter=";")


@pytest.mark.parametrize("ending", [".tsv", ".csv"])
def test_quotes_in_the_text_of_tabs(tmp_path, ending):
    """Read as quotes they would join the first two rows, and the last would be wrong."""
    texts = ['"good', 'bad"', 'he said "no"', '"so" they say']
    lines = "".join(f"{text}\tx\n" for text in texts)
    path = write(tmp_path / f"a{ending}", "text\tlabel\n" + lines)
    assert [row["text"] for row in fields(path)] == texts
    excel = 'text\tlabel\n"two\nlines"\tx\n"a ""b"""\ty\n'
    quoted = write(tmp_path / f"b{ending}", excel)
    assert [row["text"] for row in fields(quoted)] == ["two\nlines", 'a "b"']


def test_a_line_that_names_the_separator(tmp_path):
    path = write(tmp_path / "a.csv", "sep=;\r\ntext;label\r\na;x\r\nb\r\n")
    refused(path, f"{path}:4: 1 cells under a header of 2; cells are separated by ';'")
    assert fields(path, skip_bad=True) == [{"text": "a", "label": "x"}]


def test_columns_without_a_name_are_left_out(tmp_path):
    index = write(tmp_path / "a.csv", ",text,label,\n0,fine,a,\n1,bad,b,\n")
    assert fields(index) == [{"text": "fine", "label": "a"}, {"text": "bad", "label": "b"}]
    ends = write(tmp_path / "b.csv", "text,label\nfine,a,\nbad,b,c\n")
    refused(ends, f"{ends}:3: 3 cells under a header of 2", "','")
