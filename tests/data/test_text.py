"""How a text file is written: its encoding, its line ends, its compression."""

import bz2
import gzip
import json
import lzma

import pytest

from inlay.data import load
from tests.data.rows import refused, write

ROWS = [{"text": "Café crème", "label": "gut"}, {"text": "好吃", "label": "ärger"}]
CSV = "text,label\nCafé crème,gut\n好吃,ärger\n"
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
FILES = {"rows.csv": CSV, "rows.jsonl": JSONL, "rows.json": json.dumps(ROWS, ensure_ascii=False)}


def fields(path, **options):
    return [dict(example.fields) for example in load(path, **options)]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_unicode_is_told_by_the_bytes(tmp_path, name, encoding):
    path = write(tmp_path / name, FILES[name].encode(encoding))
    assert fields(path) == ROWS
    assert fields(path, encoding=encoding) == ROWS


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("encoding", ["gb18030", "utf-7"])
def test_any_other_encoding_is_named(tmp_path, name, encoding):
    path = write(tmp_path / name, FILES[name].encode(encoding))
    assert fields(path, encoding=encoding) == ROWS


def test_bytes_that_are_not_utf8_name_the_option(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\nfine,a\ncafé,b\nthé,b\n".encode("cp1252"))
    refused(path, f"{path}:3: not valid UTF-8 at byte 4", "encoding='cp1252'", "1 more row is bad")
    assert [row["text"] for row in fields(path, skip_bad=True)] == ["fine"]
    assert [row["text"] for row in fields(path, encoding="cp1252")] == ["fine", "café", "thé"]
    header = write(tmp_path / "b.csv", "thé,label\n".encode("cp1252"))
    refused(header, f"{header}:1: the header is not valid UTF-8", "encoding='cp1252'")
    whole = write(tmp_path / "c.json", '[{"text": "thé"}]'.encode("cp1252"))
    refused(whole, "c.json: not usable JSON: not valid UTF-8", "encoding='cp1252'")
    odd = write(tmp_path / "e.csv", b"text\n\x81\n")
    refused(odd, "e.csv:2: not valid text in the encoding cp1252", encoding="cp1252")


def test_an_encoding_that_the_file_does_not_have(tmp_path):
    path = write(tmp_path / "a.csv", "text\nabc\n")
    refused(path, "there is no encoding 'utf-9'; write one such as utf-8", encoding="utf-9")
    refused(path, "there is no encoding 'base64'", encoding="base64")
    refused(path, "is not text in the encoding utf-16", encoding="utf-16")
    refused(ROWS, "for files; leave them out for rows in memory", encoding="cp1252")


def test_carriage_returns_alone_end_lines(tmp_path):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    path = write(tmp_path / "a.csv", "text,label\ra,x\rb,y")
    assert fields(path) == rows
    assert load(path)[1].where == f"{path}:3"
    lines = "\r".join(map(json.dumps, rows))
    assert fields(write(tmp_path / "a.jsonl", lines)) == rows
    assert fields(write(tmp_path / "b.csv", "text,label\ra,x\r".encode("utf-16"))) == rows[:1]
    mixed = write(tmp_path / "c.csv", 'text,label\n"a\rb",x\n')  # here it is a part of a cell
    assert fields(mixed) == [{"text": "a\rb", "label": "x"}]


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("name", FILES)
def test_compressed_text_of_every_form(tmp_path, name, ending):
    packed = PACK[ending](FILES[name].encode())
    assert fields(write(tmp_path / (name + ending), packed)) == ROWS
    assert fields(write(tmp_path / name, packed)) == ROWS, "without the second ending"
    damaged = write(tmp_path / f"x{name}{ending}", packed[:-9])
    refused(damaged, f"{damaged} ")
