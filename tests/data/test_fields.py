"""The fields of an example: what they may hold, columns and templates."""

import pyarrow
import pytest
from pyarrow import parquet

from inlay.data import load
from inlay.errors import DataError
from tests.data.rows import as_jsonl, refused


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
        with pytest.raises(DataError, match="rows#1: column 'tokens'"):
            load(rows, **options)
    with pytest.raises(DataError, match="column 'tokens' .*: item 2 is null"):
        load([{"tokens": ["a", None]}], need=("tokens",))
    with pytest.raises(DataError, match="column 'predicate'"):
        load([{"tokens": ["a"], "predicate": [1]}])
    assert load([{"text": "a", "tokens": ["a", None]}])[0].fields == {"text": "a"}


def test_columns_rename(tmp_path):
    path = as_jsonl(tmp_path / "a.jsonl", [{"review": "fine", "stars": 5}])
    fields = load(path, columns={"text": "review", "label": "stars"})[0].fields
    assert (fields["text"], fields["label"], fields["review"]) == ("fine", 5, "fine")
    refused(path, ":1: ", "'reviews'; did you mean 'review'?", columns={"text": "reviews"})


def test_a_template_joins_columns(tmp_path):
    path = as_jsonl(tmp_path / "a.jsonl", [{"name": "Aromi", "a.b": 5, "area": None}])
    fields = load(path, template="{{{name}}} has {a.b}")[0].fields
    assert fields["text"] == fields["source"] == "{Aromi} has 5"
    fields = load(path, template={"target": "{name}."})[0].fields
    assert fields["target"] == "Aromi."
    assert "source" not in fields
    refused(path, "'food'; known: a.b, area, name", template="{food}")
    refused(path, "column 'area' is null", template="{area}")


def test_a_template_sees_renamed_columns(tmp_path):
    path = as_jsonl(tmp_path / "a.jsonl", [{"text": "old", "review": "new"}])
    fields = load(path, columns={"text": "review"}, template={"source": "{text}!"})[0].fields
    assert fields["source"] == "new!"
