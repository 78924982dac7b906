"""`load` and `stream`: what both give, and arguments that exclude each other."""

from inlay.data import load, stream
from inlay.data.dataset import Skipped, describe_skipped
from tests.data.rows import ROWS, as_jsonl, refused


def test_arguments_that_make_no_sense(tmp_path):
    path = as_jsonl(tmp_path / "a.jsonl", ROWS)
    refused(path, "split 'train'", split="train")
    refused(ROWS, "rows in memory", "split 'train'", split="train")
    refused(path, "field 'txt'; did you mean 'text'?", columns={"txt": "text"})
    refused(path, "field 'goal'", template={"goal": "{text}"})
    refused(path, "limit=0", limit=0)


def test_a_stream_reads_what_load_reads(tmp_path):
    path = as_jsonl(tmp_path / "a.jsonl", [*ROWS, 3])
    data = load(path, skip_bad=True)
    lazy = stream(path, skip_bad=True)
    assert len(lazy) == len(data) == 2
    assert tuple(lazy) == tuple(lazy) == data.examples
    assert lazy.skipped == data.skipped
    as_jsonl(path, ROWS[:1])
    assert len(list(lazy)) == 1  # it is read again each time


def test_skipped_rows_are_described():
    rows = [Skipped(f"a#{number}", "bad") for number in range(12)]
    assert describe_skipped([], "train") == []
    assert describe_skipped(rows[:1], "train") == ["1 row was left out of train:", "  a#0: bad"]
    lines = describe_skipped(rows, "train")
    assert len(lines) == 12
    assert lines[0] == "12 rows were left out of train:"
    assert "2 more" in lines[-1]
