"""`python -m bench`: which parts are measured, and in which types."""

import json
import sys

import pytest

pytest.importorskip("peft")

from bench import __main__ as bench
from bench.report import Row

RUN = {"bfloat16": "a step", "float32": "a step, fp32"}


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Runs the command; returns what the rows measure."""
    for dtype, what in RUN.items():
        row = Row(what, "peft", "s", ((1.0, 2.0),))
        monkeypatch.setitem(bench.STEPS, dtype, lambda quick, row=row: [row])

    def run(*words):
        path = tmp_path / "results.json"
        monkeypatch.setattr(sys, "argv", ["bench", *words, "--out", str(path)])
        bench.main()
        return [row["what"] for row in json.loads(path.read_text())["rows"]]

    return run


def test_steps_are_measured_in_both_types_or_in_one(measured):
    assert measured("steps") == ["a step", "a step, fp32"]
    assert measured("steps", "--dtype", "float32") == ["a step, fp32"]
    assert measured("steps", "--dtype", "bfloat16", "--add") == ["a step, fp32", "a step"]


def test_a_type_is_for_steps_alone(measured, capsys):
    for words in ((), ("memory",), ("steps", "memory")):
        with pytest.raises(SystemExit):
            measured(*words, "--dtype", "float32")
        assert "--dtype is for `steps` alone" in capsys.readouterr().err
