"""Rows of a file, and their predictions row by row in another one."""

import csv
import io
import json
import os
import signal
import tracemalloc

import pandas
import pytest
from pyarrow import parquet
from rich.console import Console

import inlay
from inlay.data.inputs import Census
from inlay.errors import DataError, FileError
from inlay.predicting import predict_file
from inlay.predicting.file import output_columns
from inlay.predicting.writing import CsvWriter
from inlay.tasks.records import Column
from tests.predicting.conftest import train, write
from tests.tasks import tiny

ROWS = [
    {"id": 7, "text": "the film was good", "label": "yes", "more": None},
    {"id": 8, "text": 'a "dull", old film\nand bad', "label": "", "more": ["a", "b"]},
    {"id": 9, "text": "it was not bad", "more": {"n": 1.5}},
]


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "rows.jsonl", ROWS)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_with_its_own_columns_and_its_prediction(predictor, rows, tmp_path):
    result = predict_file(predictor, rows, tmp_path / "new" / "out.jsonl")
    assert (result.rows, result.bad, result.stopped) == (3, 0, False)
    expected = predictor.predict([row["text"] for row in ROWS])
    for row, line, record in zip(
        ROWS, lines(tmp_path / "new" / "out.jsonl"), expected, strict=True
    ):
        assert {name: line[name] for name in row} == row
        assert list(line) == [*row, *record]
        assert line["prediction"] == record["prediction"]
        assert line["probabilities"] == pytest.approx(record["probabilities"], rel=1e-5)


@pytest.mark.parametrize(("name", "delimiter"), [("out.csv", ","), ("out.tsv", "\t")])
def test_a_table_has_all_columns_of_all_rows(predictor, rows, tmp_path, name, delimiter):
    predict_file(predictor, rows, tmp_path / name)
    with (tmp_path / name).open(newline="") as file:
        table = list(csv.DictReader(file, delimiter=delimiter))
    names = ["id", "text", "label", "more", "prediction", "probability", "probabilities"]
    assert list(table[0]) == names
    assert [row["text"] for row in table] == [row["text"] for row in ROWS]
    assert [row["more"] for row in table] == ["", '["a", "b"]', '{"n": 1.5}']
    assert json.loads(table[0]["probabilities"]).keys() == {"no", "yes"}


def test_parquet_has_types(predictor, rows, tmp_path):
    plain = [
        {"id": 1, "text": "a", "w": ["x"], "n": 1},
        {"id": 2, "text": "the film", "w": [], "n": 0.5},
    ]
    predict_file(predictor, write(tmp_path / "plain.jsonl", plain), tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert types["id"] == "int64" and types["n"] == "double" and types["text"] == "string"
    assert types["w"].startswith("list<")
    assert table.column("w").to_pylist() == [["x"], []]
    assert types["prediction"] == "string" and types["probability"] == "double"
    assert set(table.column("probabilities").to_pylist()[0]) == {"no", "yes"}
    predict_file(predictor, rows, tmp_path / "mixed.parquet")
    mixed = parquet.read_table(tmp_path / "mixed.parquet").column("more").to_pylist()
    assert mixed == [None, '["a", "b"]', '{"n": 1.5}']
    again = predict_file(predictor, tmp_path / "out.parquet", tmp_path / "again.parquet")
    assert again.names["prediction"] == "inlay_prediction"


def test_a_csv_of_rows_without_labels(predictor, tmp_path):
    source = tmp_path / "rows.csv"
    pandas.DataFrame({"text": ["the film", "a cat"], "label": [None, "unknown"]}).to_csv(
        source, index=False
    )
    predict_file(predictor, source, tmp_path / "out.csv")
    table = pandas.read_csv(tmp_path / "out.csv")
    assert table["text"].tolist() == ["the film", "a cat"]
    assert table["label"].tolist()[1] == "unknown"
    assert table["prediction"].isin(["no", "yes"]).all()


def test_names_never_collide(predictor, rows, tmp_path):
    first, second, third = (tmp_path / f"{n}.csv" for n in "abc")
    predict_file(predictor, rows, first)
    assert predict_file(predictor, first, second).names["prediction"] == "inlay_prediction"
    result = predict_file(predictor, second, third)
    assert result.names["probability"] == "inlay2_probability"
    table = pandas.read_csv(third)
    assert len(set(table.columns)) == len(table.columns) == 4 + 3 * 3
    assert table["prediction"].equals(table["inlay2_prediction"])
    columns = [Column("prediction", "text", "")]
    late = Census.of(iter([("1", {"a": 1}), ("2", {"prediction": 1})]))  # in some rows only
    assert output_columns(columns, late, False)[1] == {"prediction": "inlay_prediction"}
    assert (
        output_columns(columns, Census(columns={"error": {"text"}}), True)[1]["error"]
        == "inlay_error"
    )


def test_mapped_columns_are_there_once(predictor, tmp_path):
    source = write(tmp_path / "rows.jsonl", [{"review": "the film"}])
    predict_file(predictor, source, tmp_path / "out.jsonl", columns={"text": "review"})
    assert list(lines(tmp_path / "out.jsonl")[0]) == [
        "review",
        *(c.name for c in predictor.columns),
    ]


# ------------------------------------------------------------------------------------- bad rows

BAD = ["", "{", '{"text": ["a"]}', '{"text": " "}', '{"txt": "a"}', "[1]", '{"text": "old"}']


@pytest.fixture
def mixed(tmp_path):
    """A file of which only the first and the last line can be used."""
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(['{"text": "the film"}', *BAD]) + "\n")
    return path


def test_a_bad_row_ends_it_and_is_named(predictor, mixed, tmp_path):
    with pytest.raises(DataError, match=r"mixed.jsonl:3: not valid JSON.*--skip-bad-rows goes on"):
        predict_file(predictor, mixed, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    tokens = write(tmp_path / "empty.jsonl", [{"text": "a"}, {"text": "  "}])
    with pytest.raises(DataError, match=r"empty.jsonl:2: its text is empty.*--skip-bad-rows"):
        predict_file(predictor, tokens, tmp_path / "out.jsonl")


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_bad_rows_keep_their_line_and_get_a_reason(predictor, mixed, tmp_path, name):
    result = predict_file(predictor, mixed, tmp_path / name, skip_bad=True)
    assert (result.rows, result.bad) == (7, 5)
    read = {
        "jsonl": lambda p: pandas.DataFrame(lines(p)),
        "csv": pandas.read_csv,
        "parquet": pandas.read_parquet,
    }
    table = read[name.split(".")[1]](tmp_path / name)
    assert table["prediction"].notna().tolist() == [True, *[False] * 5, True]
    reasons = table["error"].tolist()
    for reason, part in zip(
        reasons[1:6],
        ("not valid JSON", "'text'", "text is empty", "no column 'text'", "an object of columns"),
        strict=True,
    ):
        assert part in reason
    good = predictor.predict(["the film", "old"])
    assert [x for x in table["prediction"] if isinstance(x, str)] == [r["prediction"] for r in good]
    assert str(result.skipped[0]).startswith(f"{mixed}:3: not valid JSON")


def test_a_file_of_bad_rows_alone(predictor, tmp_path):
    source = write(tmp_path / "rows.jsonl", [{"text": ""}] * 3)
    result = predict_file(predictor, source, tmp_path / "out.jsonl", skip_bad=True)
    assert (result.rows, result.bad) == (3, 3)
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no rows"):
        predict_file(predictor, tmp_path / "none.jsonl", tmp_path / "other.jsonl")


# ---------------------------------------------------------------------------------------- files


def test_nothing_is_overwritten_by_chance(predictor, rows, tmp_path):
    target = tmp_path / "out.csv"
    target.write_text("precious")
    with pytest.raises(FileError, match=r"exists already; name another.*--overwrite"):
        predict_file(predictor, rows, target)
    with pytest.raises(FileError, match="holds the rows to predict"):
        predict_file(predictor, rows, rows, overwrite=True)
    assert target.read_text() == "precious"
    bad = write(tmp_path / "bad.jsonl", [{"x": 1}])
    with pytest.raises(DataError):
        predict_file(predictor, bad, target, overwrite=True)
    assert target.read_text() == "precious", "nothing was predicted"
    predict_file(predictor, rows, target, overwrite=True)
    assert "precious" not in target.read_text()
    with pytest.raises(DataError, match=r"out.xlsx has no ending.*known: .jsonl, .csv"):
        predict_file(predictor, rows, tmp_path / "out.xlsx")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(FileError, match="is a folder"):
        predict_file(predictor, rows, tmp_path / "folder.csv")


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    own = Census(columns={"a": {"text"}})
    with CsvWriter(tmp_path / "out.csv", own, []) as sink:
        sink.write([{"a": "first"}])

        def full(file, data):
            file.write(data[:3])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(sink, "_put", full)
        with pytest.raises(FileError, match="cannot write .*No space left"):
            sink.write([{"a": "second"}])
    assert (tmp_path / "out.csv").read_text() == "a\nfirst\n"


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_ctrl_c_leaves_whole_rows(predictor, tmp_path, name, monkeypatch):
    source = write(tmp_path / "rows.jsonl", [{"text": f"the film {n}"} for n in range(300)])
    records, calls = predictor.records, []

    def interrupted(inputs, **options):
        calls.append(len(inputs))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return records(inputs, **options)

    monkeypatch.setattr(predictor, "records", interrupted)
    result = predict_file(predictor, source, tmp_path / name, batch_size=4)
    assert result.stopped and result.rows == 128
    read = {
        "jsonl": lambda p: pandas.DataFrame(lines(p)),
        "csv": pandas.read_csv,
        "parquet": pandas.read_parquet,
    }
    table = read[name.split(".")[1]](tmp_path / name)
    assert len(table) == 128
    assert table["prediction"].notna().all()
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "rows.jsonl"]


def test_a_pipe_is_predicted_as_it_comes(predictor):
    from inlay.predicting.file import predict_lines

    seen = []

    class Sink:
        def write(self, lines):
            seen.append([line["text"] for line in lines])

    def slow():
        for number in range(5):
            yield f"the film {number}\r\n"
            if number == 3:
                assert seen == [["the film 0", "the film 1"], ["the film 2", "the film 3"]]
            yield "\n"

    names = {column.name: column.name for column in predictor.columns}
    result = predict_lines(predictor, slow(), Sink(), names, batch_size=2)
    assert result.rows == 5 and seen[-1] == ["the film 4"]


def test_progress_says_how_much_time_is_left(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr("inlay.training.loop.progress.FIRST_LINE_AFTER", 0.0)
    monkeypatch.setattr("inlay.training.loop.progress.LINE_EVERY", 0.0)
    source = write(tmp_path / "rows.jsonl", [{"text": "the film"}] * 20)
    console = Console(file=io.StringIO(), width=100)
    predict_file(predictor, source, tmp_path / "out.csv", batch_size=4, console=console)
    text = console.file.getvalue()
    assert "predicting  20%  4 of 20 rows  0:00 left" in text


def test_memory_does_not_grow_with_the_file(predictor, tmp_path):
    """What Python holds at most for 4,000 rows is what it holds for 1,000."""
    peaks = {}
    for count in (200, 1000, 4000):
        source = tmp_path / f"{count}.jsonl"
        source.write_text(f'{{"text": "the film was good", "id": "{"x" * 300}"}}\n' * count)
        tracemalloc.start()
        predict_file(predictor, source, tmp_path / f"{count}.csv", batch_size=8)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[4000] < 1.1 * peaks[1000]
    assert (tmp_path / "4000.csv").read_text().count("\n") == 4001


def test_rows_of_other_tasks(folder, tmp_path):
    rows = [{"tokens": ["the", w, "sat"], "tags": ["O", "B-X", "O"]} for w in tiny.WORDS[:8]]
    tagger = inlay.open(train(folder, "tagger", "bert", {"kind": "tag"}, rows, rows).path)
    assert tagger.usage.calibration["rows"] == 24
    source = write(
        tmp_path / "rows.jsonl",
        [{"text": "the cat, the dog"}, {"tokens": ["a", "dog"], "tags": None}],
    )
    predict_file(tagger, source, tmp_path / "out.jsonl")
    first, second = lines(tmp_path / "out.jsonl")
    assert list(first) == ["text", "prediction", "entities"] and len(first["prediction"]) == 5
    assert list(second) == ["tokens", "tags", "prediction", "entities"]
    predict_file(tagger, source, tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column("entities").to_pylist()[0] == first["entities"]
