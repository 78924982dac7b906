"""What a data file may hold, and what is said about one that cannot be used."""

import gzip
import json
import random

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from inlay.data.dataset import Example, label_name, load, stream
from inlay.data.template import Template
from inlay.errors import DataError

ROWS = [{"text": "good", "label": 1}, {"text": 'bad, "very"\nbad', "label": 0}]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_jsonl(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def refused(source, *needles, **options):
    with pytest.raises(DataError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for needle in needles:
        assert needle in message
    return message


# ------------------------------------------------------------------------ the four formats


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


def test_rows_in_memory():
    data = load(ROWS)
    assert data[0] == Example(ROWS[0], "rows#1")


def test_a_dataset_of_datasets_keeps_its_label_names():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"text": ["a", "b", "c"], "label": [1, 0, -1]}
    data = load(datasets.Dataset.from_dict(rows, features=features), skip_bad=True)
    assert [example.fields["label"] for example in data] == ["yes", "no"]
    assert [skipped.where for skipped in data.skipped] == ["rows#3"]


def test_a_folder_has_one_file_a_split(tmp_path):
    as_jsonl(tmp_path / "train.jsonl", ROWS)
    as_jsonl(tmp_path / "dev.jsonl", ROWS[:1])
    assert len(load(tmp_path, split="dev")) == 1
    refused(tmp_path, "name a split of it: dev, train")
    refused(tmp_path, "no split 'trian'; did you mean 'train'?", split="trian")
    write(tmp_path / "dev.csv", "text\nx\n")
    refused(tmp_path, "2 times", split="dev")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no file that can be read", split="dev")


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
    import csv

    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    assert [dict(example.fields) for example in load(path)] == rows


# --------------------------------------------------------------------------- odd, but fine


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
    import csv

    before = csv.field_size_limit()
    data = load(write(tmp_path / "a.csv", f"text\n{'x' * 300_000}\n"))
    assert len(data[0].fields["text"]) == 300_000
    assert csv.field_size_limit() == before


def test_other_columns_may_hold_anything(tmp_path):
    data = load(as_jsonl(tmp_path / "a.jsonl", [{"text": "a", "spans": [1], "n": None, "k": True}]))
    assert dict(data[0].fields) == {"text": "a", "k": True}


def test_lists_of_tasks_are_kept_and_others_left_out(tmp_path):
    row = {"tokens": ["a", "b"], "tags": [1, "x"], "answers": [{"text": "a", "start": 0}], "n": [1]}
    kept = {name: row[name] for name in ("tokens", "tags", "answers")}
    assert load(as_jsonl(tmp_path / "a.jsonl", [row]))[0].fields == kept
    assert load([row])[0].fields == kept
    table = pyarrow.Table.from_pylist([{**row, "tags": ["x", "y"]}])
    parquet.write_table(table, tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet")[0].fields == {**kept, "tags": ["x", "y"]}
    mapped = load([{"words": ["a"], "tokens": "b"}], columns={"tokens": "words"})[0].fields
    assert mapped["tokens"] == ["a"]
    assert load([{"answers": [{"text": "a", "start": 0, "id": None}]}])[0].fields == {
        "answers": [{"text": "a", "start": 0}]
    }
    assert load([{"tokens": "a b"}])[0].fields == {"tokens": "a b"}, (
        "other data may have texts there"
    )


def test_lists_are_no_texts():
    rows = [{"tokens": ["a"]}]
    for options in ({"columns": {"text": "tokens"}}, {"template": "{tokens}"}):
        with pytest.raises(DataError, match="rows#1: column 'tokens' is a list, not text or a num"):
            load(rows, **options)
    with pytest.raises(DataError, match="column 'tokens' holds a bad value: item 2 is null, not"):
        load([{"tokens": ["a", None]}], need=("tokens",))
    with pytest.raises(DataError, match="column 'predicate' is a list, not text or a number"):
        load([{"tokens": ["a"], "predicate": [1]}])
    assert load([{"text": "a", "tokens": ["a", None]}])[0].fields == {"text": "a"}


# ---------------------------------------------------------------------------------- refused

BAD_LINES = [
    (b'{"text": "a"', "not valid JSON"),
    (b'["a"]', "expected an object of columns, found a list"),
    (b"3", "found a number"),
    (b'{"text": "\xff"}', "not valid UTF-8 at byte 11"),
    (b'{"text": "\\ud800"}', "column 'text' is not valid UTF-8"),
    (b'{"text": ["a"]}', "column 'text' is a list, not text or a number"),
    (b'{"text": "a", "label": NaN}', "column 'label' is nan, not a number"),
    (b'{"text": "a", "label": Infinity}', "column 'label' is inf"),
    (b'{"text": "a", "text": "b"}', "'text' stands there twice"),
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


PACKED = [
    ("rows.jsonl.gz", json.dumps({"text": "good"}) + "\n", "rows.jsonl.gz:1"),
    ("rows.json.gz", json.dumps([{"text": "good"}]), "rows.json.gz#1"),
    ("rows.csv.gz", "text\ngood\n", "rows.csv.gz:2"),
]


@pytest.mark.parametrize(("name", "content", "where"), PACKED)
def test_packed_files_are_read_like_plain_ones(tmp_path, name, content, where):
    path = write(tmp_path / name, gzip.compress(content.encode()))
    for data in (load(path), load(tmp_path, split="rows")):
        assert dict(data[0].fields) == {"text": "good"}
        assert data[0].where == str(tmp_path / where)


@pytest.mark.parametrize("harm", [lambda b: b[:-9], lambda b: b[:10] + b"x" * 40, lambda b: b"{}"])
def test_a_damaged_packed_file(tmp_path, harm):
    lines = "".join(f'{{"text": "{random.random()}"}}\n' for _ in range(100))
    path = write(tmp_path / "rows.jsonl.gz", harm(gzip.compress(lines.encode())))
    refused(path, "rows.jsonl.gz is damaged, or not compressed with gzip")


def test_a_packed_kind_that_is_not_read(tmp_path):
    write(tmp_path / "rows.parquet.gz", gzip.compress(b"PAR1"))
    refused(tmp_path / "rows.parquet.gz", "not a file that can be read; known: ", ".csv.gz")
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
        refused(write(tmp_path / name, b""), "holds no usable row: empty")
    refused(write(tmp_path / "b.csv", "text,label\n"), "holds no usable row: empty")
    refused(write(tmp_path / "a.json", b""), "a.json:1: not valid JSON")
    refused(write(tmp_path / "b.json", "[]"), "holds no usable row: empty")
    refused(
        write(tmp_path / "c.json", '{"rows": []}'), "expected a list of objects, found an object"
    )
    refused(write(tmp_path / "d.json", '{"a": 1}\n{"a": 2}'), "one object per line is .jsonl")
    refused(write(tmp_path / "e.json", b'["\xff"]'), "not usable JSON")
    refused(write(tmp_path / "a.parquet", b"PAR1 nonsense"), "not a whole Parquet file")
    refused(write(tmp_path / "a.txt", "x"), "not a file that can be read; known: .jsonl, .json")
    refused(tmp_path / "missing.jsonl", "there is no file")
    refused(
        write(tmp_path / "utf16.csv", "text\na\n".encode("utf-16")),
        "utf16.csv:1: the header is not UTF-8 text",
    )
    path = write(tmp_path / "all.jsonl", "1\n2\n")
    refused(path, "all 2 rows are bad, the first at", f"{path}:1", skip_bad=True)


def test_arguments_that_make_no_sense(tmp_path):
    path = as_jsonl(tmp_path / "a.jsonl", ROWS)
    refused(path, "one file and has no split", split="train")
    refused(ROWS, "rows in memory have no split", split="train")
    refused(path, "no field 'txt' to fill; did you mean 'text'?", columns={"txt": "text"})
    refused(path, "no field 'goal'", template={"goal": "{text}"})
    refused(path, "limit=0", limit=0)


def test_what_datasets_publishes(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(path, name, split):
        asked.append((path, name, split))
        if path == "nobody":
            raise FileNotFoundError("no such thing\nsecond line")
        parts = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))
        return parts[split] if split else parts

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load("glue:rte", split="train")
    assert [dict(example.fields) for example in data] == ROWS
    assert data[0].where == "glue:rte#1"
    refused("glue", "glue comes in parts; name a split of it: train")
    refused("nobody", "no file nobody, and datasets cannot load it: no such thing")
    assert asked == [("glue", "rte", "train"), ("glue", None, None), ("nobody", None, None)]


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    import sys

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(path, "needs pyarrow: pip install 'inlay[data]'")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("some-data-set", "pip install 'inlay[data]'")


# ------------------------------------------------------------------- columns and templates


def test_columns_rename(tmp_path):
    path = as_jsonl(tmp_path / "a.jsonl", [{"review": "fine", "stars": 5}])
    fields = load(path, columns={"text": "review", "label": "stars"})[0].fields
    assert (fields["text"], fields["label"], fields["review"]) == ("fine", 5, "fine")
    refused(
        path, ":1: ", "no column 'reviews'; did you mean 'review'?", columns={"text": "reviews"}
    )


def test_a_template_joins_columns(tmp_path):
    path = as_jsonl(tmp_path / "a.jsonl", [{"name": "Aromi", "a.b": 5, "area": None}])
    fields = load(path, template="{{{name}}} has {a.b}")[0].fields
    assert fields["text"] == fields["source"] == "{Aromi} has 5"
    fields = load(path, template={"target": "{name}."})[0].fields
    assert fields["target"] == "Aromi."
    assert "source" not in fields
    refused(path, "no column 'food'; known: a.b, area, name", template="{food}")
    refused(path, "column 'area' is null", template="{area}")


def test_a_template_sees_renamed_columns(tmp_path):
    path = as_jsonl(tmp_path / "a.jsonl", [{"text": "old", "review": "new"}])
    fields = load(path, columns={"text": "review"}, template={"source": "{text}!"})[0].fields
    assert fields["source"] == "new!"


@pytest.mark.parametrize(
    "text", ["{}", "{text!r}", "{text:>9}", "{text", "text}", "{text:{width}}"]
)
def test_a_template_holds_plain_names_only(text):
    with pytest.raises(DataError, match="template"):
        Template(text)


def test_a_template_reaches_into_nothing():
    assert Template("{text.__class__}").names == ("text.__class__",)
    refused([{"text": "a"}], "no column 'text.__class__'", template="{text.__class__}")
    refused([{"text": "a"}], "no column 'text[0]'", template="{text[0]}")


# ------------------------------------------------------------------------------------ limit


def test_shots_draws_as_many_of_each_label_in_order():
    rows = [{"text": str(n), "label": ["a", 1, 1.0][n % 3]} for n in range(30)]
    picked = load(rows, shots=3)
    counts = [label_name(one.fields["label"]) for one in picked]
    assert (counts.count("a"), counts.count("1")) == (3, 3)
    places = [int(one.fields["text"]) for one in picked]
    assert places == sorted(places)
    assert picked.examples == load(rows, shots=3).examples
    assert picked.examples != load(rows, shots=3, seed=1).examples
    assert len(load(rows, shots=10, columns={"label": "label"})) == 20


def test_shots_that_cannot_be_drawn():
    rows = [{"text": str(n), "label": "b" if n in (3, 4) else "a"} for n in range(10)]
    refused(rows, "has 2 of label 'b', fewer than shots=3", shots=3)
    refused(rows, "shots=0 leaves no rows", shots=0)
    refused(rows, "limit and shots exclude each other", shots=1, limit=3)
    refused([{"text": "a"}], "#1: it has no label, and shots=1 goes by labels", shots=1)


def test_limit_draws_a_sample_in_order():
    rows = [{"text": str(number)} for number in range(50)]
    random.Random(1).shuffle(rows)
    picked = load(rows, limit=10)
    places = [int(example.where.removeprefix("rows#")) for example in picked]
    assert len(picked) == 10
    assert places == sorted(places) != list(range(1, 11))
    assert picked.examples == load(rows, limit=10).examples
    assert picked.examples != load(rows, limit=10, seed=1).examples
    assert len(load(rows, limit=500)) == 50


def test_data_that_are_fetched_by_name(tmp_path, monkeypatch):
    (tmp_path / "tweets").mkdir()
    write(tmp_path / "tweets" / "test.jsonl", '{"text": "so good", "label": "positive"}\n')
    monkeypatch.setattr("inlay.hub.models.fetch_sentiment", lambda: tmp_path)
    found = load("tweets", split="test")
    assert [one.fields["label"] for one in found] == ["positive"]
    assert len(stream("tweets", split="test")) == 1
    with pytest.raises(DataError, match="there is no file tweet; did you mean 'tweets'"):
        load("tweet", split="test")
    monkeypatch.chdir(tmp_path)  # a folder of one's own goes first
    monkeypatch.setattr("inlay.hub.models.fetch_sentiment", lambda: tmp_path / "nowhere")
    assert len(load("tweets", split="test")) == 1
