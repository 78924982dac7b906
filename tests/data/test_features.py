"""Names of classes: of single ones, of lists, within objects, in memory and in Parquet files."""

import pytest

from inlay.data import load
from tests.data.rows import refused

datasets = pytest.importorskip("datasets")
NAMES = ["O", "B-PER", "B-LOC"]
LABEL = datasets.ClassLabel(names=NAMES)


def sets(tmp_path, rows, features):
    data = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    path = tmp_path / "rows.parquet"
    data.to_parquet(path)
    return {"memory": data, "parquet": path, "streamed": data.to_iterable_dataset()}


@pytest.mark.parametrize("source", ["memory", "parquet", "streamed"])
def test_names_of_lists_and_of_single_classes(tmp_path, source):
    rows = [
        {"tokens": ["Ada", "in", "Oslo"], "ner": [1, 0, 2], "label": 2},
        {"tokens": ["Bo"], "ner": [0], "label": -1},
    ]
    features = {
        "tokens": datasets.List(datasets.Value("string")),
        "ner": datasets.List(LABEL),
        "label": LABEL,
    }
    data = load(sets(tmp_path, rows, features)[source], columns={"tags": "ner"})
    assert data[0].fields["tags"] == ["B-PER", "O", "B-LOC"]
    assert data[0].fields["label"] == "B-LOC"
    assert data[1].fields["tags"] == ["O"]
    assert "label" not in data[1].fields, "-1 stands for no label"


@pytest.mark.parametrize("source", ["memory", "parquet"])
def test_names_within_lists_of_lists_and_nulls(tmp_path, source):
    rows = [{"labels": [[1], [2, 0]], "label": None}]
    features = {"labels": datasets.List(datasets.List(LABEL)), "label": LABEL}
    data = load(sets(tmp_path, rows, features)[source])
    assert dict(data[0].fields) == {"labels": [["B-PER"], ["B-LOC", "O"]]}


def test_a_number_without_a_name_is_a_bad_row(tmp_path):
    import pyarrow
    from pyarrow import parquet

    source = sets(tmp_path, [{"label": 1}], {"label": LABEL})["parquet"]
    schema = parquet.read_schema(source)
    table = pyarrow.table({"label": [1, 7]}, schema=schema)
    parquet.write_table(table, source)
    refused(source, "#2: a class number without a name: 7, of 3 classes")


def test_fields_that_only_other_rows_have_are_left_out(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "a", "name": None}]},
        {"messages": [{"role": "user", "content": "a", "name": "Bo"}]},
    ]
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    data = load(tmp_path / "a.parquet")
    assert data[0].fields["messages"] == [{"role": "user", "content": "a"}]
    assert data[1].fields["messages"][0]["name"] == "Bo"
    kept = load(rows)[0].fields["messages"][0]
    assert kept == {"role": "user", "content": "a", "name": None}, "JSON means its nulls"
