"""bench/docs: the generated documents are up to date, and show what was stored."""

import json

from bench.docs import __main__ as docs
from bench.docs import speed, tasks


def test_generated_documents_are_up_to_date(capsys):
    assert docs.main(["--check"]) == 0, capsys.readouterr().out


def test_an_outdated_document_is_noticed_and_written(tmp_path, capsys):
    (tmp_path / "README.md").write_text(
        "<!-- methods -->\nold\n<!-- /methods -->\n<!-- bench -->\n<!-- /bench -->\n"
    )
    assert docs.main(["--check"], tmp_path) == 1
    assert "README.md is out of date; run: make docs" in capsys.readouterr().out
    assert docs.main([], tmp_path) == 0
    text = (tmp_path / "README.md").read_text()
    assert "old" not in text
    assert "`LoRA`" in text
    assert "make bench" in text
    assert docs.main(["--check"], tmp_path) == 0


def test_a_benchmark_becomes_a_table():
    machine = {"cores": 2, "device": "a CPU", "torch": "1", "transformers": "2", "peft": "3"}
    row = {"what": "a step", "baseline": "peft", "unit": "s", "ours": 1.23456, "other": 2.0}
    row |= {"ratio": 0.61728, "at_most": 0.7, "at_least": None}
    results = {"runs": ["today"], "quick": False, "machine": machine, "rows": [row]}
    text = speed.measured(results)
    assert "| a step | peft | 1.235 | 2 | s | 0.62 | ≤ 0.70 |" in text
    assert "2 cores (a CPU) with torch 1, transformers 2, peft 3 on today." in text
    text = speed.measured(results | {"runs": ["yesterday", "today"]})
    assert "peft 3 in 2 runs, the last on today." in text


def test_the_cells_of_the_tasks_become_a_table(tmp_path):
    assert "Not measured" in tasks.page(tmp_path)
    reason = {"refused": "it cannot write"}
    untouched = {"metric": "f1", "rows": 277, "most_frequent": 0.25}
    cells = {
        "one/untouched": {**untouched, "score": 0.5, "note": "as it is"},
        "one/LoRA": {"metric": "f1", "score": 0.75, "steps": 12},
        "two/untouched": {**untouched, **reason},
        "two/LoRA": reason,
    }
    stored = {"set": "words", "seconds": 60, "seed": 0, "batch_size": 8, "test_rows": 300}
    stored |= {"tasks": {"one": {}, "two": {}, "three": {}}, "methods": {"LoRA": {}}}
    stored |= {"machine": {"device": "a CPU", "torch": "1", "transformers": "2"}, "cells": cells}
    (tmp_path / "words.json").write_text(json.dumps(stored))
    text = tasks.page(tmp_path)
    assert "| words | one | f1 | 277 | 0.250 | 0.500 [1] | 0.750 (12) |" in text
    assert "| words | two | f1 | 277 | 0.250 | – [2] | – [2] |" in text
    assert "| words | three |  |  |  |  |  |" in text  # not measured yet
    assert "1. as it is" in text and "2. it cannot write" in text
