"""Where rows come from: memory, folders of splits, bundled data and `datasets`."""

import sys

import pyarrow
import pytest
from pyarrow import parquet

from inlay.data import Example, load, stream
from inlay.errors import DataError
from tests.data.rows import ROWS, as_jsonl, refused, write


def test_rows_in_memory():
    data = load(ROWS)
    assert data[0] == Example(ROWS[0], "rows#1")


def test_a_dataset_of_datasets_keeps_its_label_names():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"text": ["a", "b", "c"], "label": [1, 0, -1]}
    data = load(datasets.Dataset.from_dict(rows, features=features), skip_bad=True, need=("label",))
    assert [example.fields["label"] for example in data] == ["yes", "no"]
    assert [skipped.where for skipped in data.skipped] == ["rows#3"]


def test_a_folder_has_one_file_a_split(tmp_path):
    as_jsonl(tmp_path / "train.jsonl", ROWS)
    as_jsonl(tmp_path / "dev.jsonl", ROWS[:1])
    assert len(load(tmp_path, split="dev")) == 1
    refused(tmp_path, "dev, train")
    refused(tmp_path, "did you mean 'train'?", split="trian")
    write(tmp_path / "dev.csv", "text\nx\n")
    refused(tmp_path, "dev.csv, dev.jsonl", split="dev")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "known: .jsonl", split="dev")


def test_a_missing_file_names_the_ones_that_could_be_meant(tmp_path):
    """Compressed, with another ending, misspelt; a data set's name with a slash is no path."""
    write(tmp_path / "train.jsonl.gz", b"")
    refused(tmp_path / "train.jsonl", "there is no file", f"mean {tmp_path}/train.jsonl.gz?")
    refused(str(tmp_path / "train"), "there is no file", f"mean {tmp_path}/train.jsonl.gz?")
    write(tmp_path / "dev.csv", "")
    refused(tmp_path / "dev.tsv", f"did you mean {tmp_path}/dev.csv?")
    refused(tmp_path / "devv.csv", f"did you mean {tmp_path}/dev.csv?")
    refused(tmp_path / "else.csv", "check its path")
    refused(tmp_path / "no" / "dev.csv", f"there is no folder {tmp_path}/no")


def test_a_split_in_several_parts(tmp_path):
    for number in (0, 1):
        as_jsonl(tmp_path / f"train-0000{number}-of-00002.jsonl", [{"text": str(number)}])
    as_jsonl(tmp_path / "test-00000-of-00001.jsonl", ROWS)
    data = load(tmp_path, split="train")
    assert [example.fields["text"] for example in data] == ["0", "1"]
    assert data[1].where == f"{tmp_path}/train-00001-of-00002.jsonl:1"
    assert data.source == f"{tmp_path}/train"
    assert len(load(tmp_path, split="test")) == 2
    refused(tmp_path, "name one: test, train")


def test_a_data_set_saved_by_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"label": datasets.ClassLabel(names=["no", "yes"])})
    saved = datasets.Dataset.from_dict({"label": [1, 0]}, features=features)
    saved.save_to_disk(tmp_path / "one")
    assert [example.fields["label"] for example in load(tmp_path / "one")] == ["yes", "no"]
    refused(tmp_path / "one", "is a single split", split="train")
    datasets.DatasetDict(train=saved).save_to_disk(tmp_path / "many")
    assert len(load(tmp_path / "many", split="train")) == 2
    refused(tmp_path / "many", "holds no split 'trian'; did you mean 'train'?", split="trian")


def test_a_data_frame_and_several_splits():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["a", None], "label": [1, 0]})
    numpy = pytest.importorskip("numpy")
    arrays = pandas.DataFrame({"labels": [numpy.array([1, 0]), numpy.array(["a"])]})
    assert [example.fields["labels"] for example in load(arrays)] == [[1, 0], ["a"]]
    data = load(frame, need=("text",), skip_bad=True)
    assert [dict(example.fields) for example in data] == [{"text": "a", "label": 1}]
    assert [str(row) for row in data.skipped] == ["rows#2: column 'text' is null"]
    datasets = pytest.importorskip("datasets")
    refused(datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)), "several splits", "train")


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
    refused("glue", "glue", ": train")
    refused("nobody", "nobody", ": no such thing")
    assert asked == [("glue", "rte", "train"), ("glue", None, None), ("nobody", None, None)]


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(path, "pyarrow", "pip install 'inlay[data]'")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("some-data-set", "pip install 'inlay[data]'")


def test_data_that_are_fetched_by_name(tmp_path, monkeypatch):
    (tmp_path / "tweets").mkdir()
    write(tmp_path / "tweets" / "test.jsonl", '{"text": "so good", "label": "positive"}\n')
    monkeypatch.setattr("inlay.data.sources.fetch_sentiment", lambda: tmp_path)
    data = load("tweets", split="test")
    assert [example.fields["label"] for example in data] == ["positive"]
    assert len(stream("tweets", split="test")) == 1
    with pytest.raises(DataError, match="did you mean 'tweets'"):
        load("tweet", split="test")
    monkeypatch.chdir(tmp_path)  # a folder of one's own goes first
    monkeypatch.setattr("inlay.data.sources.fetch_sentiment", lambda: tmp_path / "nowhere")
    assert len(load("tweets", split="test")) == 1
