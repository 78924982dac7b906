"""The formats of data files, and what is said about a file that cannot be read."""

import csv
import gzip
import json
import random

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from inlay.data import load
from tests.data.rows import ROWS, as_jsonl, refused, write


def test_jsonl(tmp_path):
    data = load(as_jsonl(tmp_path / "rows.jsonl", ROWS))
    assert [dict(example.fields) for example in data] == ROWS
    assert data[1].where == f"{tmp_path / 'rows.jsonl'}:2"
    assert data.skipped == ()


def test_json(tmp_path):
    data = load(write(tmp_path / "rows.json", json.dumps(ROWS, indent=1)))
    assert [dict(example.fields) for example in data] == ROWS
    assert data[1].where.endswith("rows.json#2")


def test_parquet(tmp_path):
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    data = load(tmp_path / "rows.parquet")
    assert [dict(example.fields) for example in data] == ROWS
    assert data[1].where.endswith("rows.parquet#2")


def test_csv_names_the_line_on_which_a_row_begins(tmp_path):
    path = write(tmp_path / "r.csv", 'text,label\r\n"two\r\nlines",1\r\n\r\nplain,"0"\r\n')
    data = load(path)
    assert [dict(example.fields) for example in data] == [
        {"text": "two\r\nlines", "label": "1"},
        {"text": "plain", "label": "0"},
    ]
    assert [example.where.rpartition(":")[2] for example in data] == ["2", "5"]


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.fixed_dictionaries({"text": cells, "label": cells | numbers}), min_size=1))
def test_jsonl_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert [dict(example.fields) for example in load(write(path, text))] == rows


@settings(max_examples=30, deadline=None)
@given(st.lists(st.fixed_dictionaries({"text": cells, "label": cells}), min_size=1))
def test_csv_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    assert [dict(example.fields) for example in load(path)] == rows


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path, name):
    body = {"a.jsonl": '{"text": "é"}', "a.json": '[{"text": "é"}]', "a.csv": "text\né\n"}[name]
    data = load(write(tmp_path / name, b"\xef\xbb\xbf" + body.encode()))
    assert dict(data[0].fields) == {"text": "é"}


def test_windows_line_ends_and_blank_lines_in_jsonl(tmp_path):
    data = load(write(tmp_path / "a.jsonl", '{"text": "a"}\r\n\r\n  \n{"text": "b"}'))
    assert [(e.fields["text"], e.where.rpartition(":")[2]) for e in data] == [
        ("a", "1"),
        ("b", "4"),
    ]


def test_only_a_newline_ends_a_line_of_jsonl(tmp_path):
    text = "a\u2028b\x0bc\x85d"
    data = load(write(tmp_path / "a.jsonl", json.dumps({"text": text}, ensure_ascii=False)))
    assert data[0].fields["text"] == text


def test_a_field_may_be_larger_than_the_limit_of_csv(tmp_path):
    before = csv.field_size_limit()
    data = load(write(tmp_path / "a.csv", f"text\n{'x' * 300_000}\n"))
    assert len(data[0].fields["text"]) == 300_000
    assert csv.field_size_limit() == before


BAD_LINES = [
    (b'{"text": "a"', "not valid JSON"),
    (b'["a"]', "expected an object of columns, found a list"),
    (b"3", "found a number"),
    (b'{"text": "\xff"}', "not valid UTF-8 at byte 11"),
    (b'{"text": "\\ud800"}', "column 'text' is not valid UTF-8"),
    (b'{"text": ["a"]}', "column 'text' is a list, not text or a number"),
    (b'{"text": "a", "label": NaN}', "column 'label' is nan, not a number"),
    (b'{"text": "a", "label": Infinity}', "column 'label' is inf"),
    (b'{"text": "a", "text": "b"}', "the name 'text' is repeated"),
    (b'{"text": ' + b"[" * 100_000, "not usable JSON"),
    (b'{"text": null}', "column 'text' is null"),
    (b'{"txt": "a"}', "no column 'text'; did you mean 'txt'?"),
    (b'{"text": 1' + b"0" * 5000 + b"}", "not usable JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[reason for _, reason in BAD_LINES])
def test_a_bad_line_is_named_or_collected_on_request(tmp_path, line, reason):
    path = write(tmp_path / "a.jsonl", b'{"text": "fine"}\n' + line + b'\n{"text": "fine too"}\n')
    refused(path, f"{path}:2: ", reason, need=["text"])
    data = load(path, need=["text"], skip_bad=True)
    assert [example.fields["text"] for example in data] == ["fine", "fine too"]
    (skipped,) = data.skipped
    assert skipped.where == f"{path}:2"
    assert reason in skipped.reason


BAD_CSV = [
    (b"a,b,c", "3 cells under a header of 2"),
    (b"a", "1 cells under a header of 2"),
    (b'"a"x,b', "not valid CSV"),
    (b"\xff\xfe,b", "not valid UTF-8"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_CSV, ids=[reason for _, reason in BAD_CSV])
def test_a_bad_row_of_csv(tmp_path, line, reason):
    path = write(tmp_path / "a.csv", b'text,label\n"x\ny",1\n' + line + b"\nz,1\n")
    refused(path, f"{path}:4: ", reason)
    data = load(path, skip_bad=True)
    assert [example.fields["text"] for example in data] == ["x\ny", "z"]
    assert [(skipped.where, reason in skipped.reason) for skipped in data.skipped] == [
        (f"{path}:4", True)
    ]


COMPRESSED = [
    ("rows.jsonl.gz", json.dumps({"text": "good"}) + "\n", "rows.jsonl.gz:1"),
    ("rows.json.gz", json.dumps([{"text": "good"}]), "rows.json.gz#1"),
    ("rows.csv.gz", "text\ngood\n", "rows.csv.gz:2"),
]


@pytest.mark.parametrize(("name", "content", "where"), COMPRESSED)
def test_compressed_files_are_read_like_plain_ones(tmp_path, name, content, where):
    path = write(tmp_path / name, gzip.compress(content.encode()))
    for data in (load(path), load(tmp_path, split="rows")):
        assert dict(data[0].fields) == {"text": "good"}
        assert data[0].where == str(tmp_path / where)


@pytest.mark.parametrize("harm", [lambda b: b[:-9], lambda b: b[:10] + b"x" * 40, lambda b: b"{}"])
def test_a_damaged_compressed_file(tmp_path, harm):
    lines = "".join(f'{{"text": "{random.random()}"}}\n' for _ in range(100))
    path = write(tmp_path / "rows.jsonl.gz", harm(gzip.compress(lines.encode())))
    refused(path, "rows.jsonl.gz is damaged, or not compressed with gzip")


def test_a_compressed_format_that_is_not_read(tmp_path):
    write(tmp_path / "rows.parquet.gz", gzip.compress(b"PAR1"))
    refused(tmp_path / "rows.parquet.gz", "known: .jsonl", ".gz, .bz2 or .xz after any but")
    refused(tmp_path / "none.jsonl.gz", "there is no file")


def test_a_quote_that_is_never_closed(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\na,1\n"b,1\nc,1\n')
    refused(path, f"{path}:3: not valid CSV")


def test_a_header_with_one_name_twice(tmp_path):
    path = write(tmp_path / "a.csv", "text,label,text\na,1,b\n")
    refused(path, f"{path}:1: the header names column 'text' twice")
    refused(path, "twice", skip_bad=True)


def test_whole_files_that_cannot_be_used(tmp_path):
    for name in ("a.jsonl", "a.csv"):
        refused(write(tmp_path / name, b""), "holds no rows")
    refused(write(tmp_path / "b.csv", "text,label\n"), "holds no rows")
    refused(write(tmp_path / "a.json", b""), "a.json:1: not valid JSON")
    refused(write(tmp_path / "b.json", "[]"), "holds no rows")
    refused(
        write(tmp_path / "c.json", '{"rows": []}'), "expected a list of objects, found an object"
    )
    refused(write(tmp_path / "e.json", b'["\xff"]'), "not usable JSON")
    refused(write(tmp_path / "a.parquet", b"PAR1 nonsense"), "not a whole Parquet file")
    refused(write(tmp_path / "a.txt", "x"), "known: .jsonl")
    refused(tmp_path / "missing.jsonl", "there is no file")
    path = write(tmp_path / "all.jsonl", "1\n2\n")
    refused(path, "all 2 rows are bad", f"{path}:1", skip_bad=True)
