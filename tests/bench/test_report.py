"""bench/report.py: rounds of several runs are pooled if they were measured alike."""

import json

import pytest

from bench import report
from bench.report import Row, pooled


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine that need not have peft installed."""
    monkeypatch.setattr(report, "machine", lambda: {"cores": 2})


def row(*rounds, what="a step", baseline="peft", **target):
    return Row(what, baseline, "s", rounds, **target)


def test_a_row_has_the_medians_of_its_rounds():
    comparison = row((1.0, 2.0), (4.0, 4.0), (3.0, 2.0), at_most=1.0)
    assert (comparison.ours, comparison.other, comparison.ratio) == (3.0, 2.0, 1.0)
    assert comparison.ratios == [0.5, 1.0, 1.5]
    assert comparison.met is True
    assert row((1.1, 1.0), at_most=1.0).met is False
    assert row((1.7, 1.0), at_least=1.8).met is False
    assert row((1.0, 1.0)).met is None


def test_runs_are_pooled_by_comparison():
    before = [row((1.0, 2.0)), row((5.0, 5.0), what="memory")]
    now = [row((3.0, 2.0), at_most=1.2), row((1.0, 1.0), baseline="the limit")]
    first, second, third = pooled(before, now)
    assert first.rounds == ((1.0, 2.0), (3.0, 2.0)) and first.at_most == 1.2
    assert first.ratio == 1.0
    assert (second.what, third.baseline) == ("memory", "the limit")


def test_written_rows_are_read_back(tmp_path):
    path = tmp_path / "results.json"
    assert report.read(path, quick=False) == ([], [])
    report.write(["2026-01-02"], [row((1.0, 2.0), (2.0, 2.0), at_most=1.1)], False, path)
    stored = json.loads(path.read_text())["rows"][0]
    assert (stored["ratio"], stored["low"], stored["high"], stored["met"]) == (0.75, 0.5, 1.0, True)
    runs, [again] = report.read(path, quick=False)
    assert runs == ["2026-01-02"] and again.ratio == 0.75 and again.at_most == 1.1
    [both] = pooled([again], [row((3.0, 2.0))])
    assert len(both.rounds) == 3


def test_rounds_measured_in_another_way_are_not_pooled(tmp_path):
    path = tmp_path / "results.json"
    report.write(["2026-01-02"], [row((1.0, 2.0))], True, path)
    with pytest.raises(SystemExit, match="another machine or in another way"):
        report.read(path, quick=False)
    stored = json.loads(path.read_text())
    stored["machine"]["cores"] = 1000
    path.write_text(json.dumps(stored))
    with pytest.raises(SystemExit, match="another machine"):
        report.read(path, quick=True)
