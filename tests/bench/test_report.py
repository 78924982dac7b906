"""bench/report.py: rounds of several runs are pooled, and only those of one kind."""

import json

import pytest

from bench import report
from bench.report import Row, pooled


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine that need not have everything that is measured beside us."""
    monkeypatch.setattr(report, "machine", lambda: {"cores": 2})


def row(*rounds, what="a step", beside="peft", **target):
    return Row(what, beside, "s", rounds, **target)


def test_a_row_tells_the_medians_of_its_rounds():
    one = row((1.0, 2.0), (4.0, 4.0), (3.0, 2.0), at_most=1.0)
    assert (one.ours, one.other, one.ratio) == (3.0, 2.0, 1.0)
    assert one.ratios == [0.5, 1.0, 1.5]
    assert one.met is True
    assert row((1.1, 1.0), at_most=1.0).met is False
    assert row((1.7, 1.0), at_least=1.8).met is False
    assert row((1.0, 1.0)).met is None


def test_runs_are_pooled_by_comparison():
    before = [row((1.0, 2.0)), row((5.0, 5.0), what="memory")]
    now = [row((3.0, 2.0), at_most=1.2), row((1.0, 1.0), beside="the limit")]
    first, kept, new = pooled(before, now)
    assert first.rounds == ((1.0, 2.0), (3.0, 2.0)) and first.at_most == 1.2
    assert first.ratio == 1.0
    assert (kept.what, new.beside) == ("memory", "the limit")


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "results.json"
    assert report.read(path, quick=False) == ([], [])
    report.write(["2026-01-02"], [row((1.0, 2.0), (2.0, 2.0), at_most=1.1)], False, path)
    told = json.loads(path.read_text())["rows"][0]
    assert (told["ratio"], told["low"], told["high"], told["met"]) == (0.75, 0.5, 1.0, True)
    runs, [again] = report.read(path, quick=False)
    assert runs == ["2026-01-02"] and again.ratio == 0.75 and again.at_most == 1.1
    [both] = pooled([again], [row((3.0, 2.0))])
    assert len(both.rounds) == 3


def test_rounds_of_another_kind_are_not_pooled(tmp_path):
    path = tmp_path / "results.json"
    report.write(["2026-01-02"], [row((1.0, 2.0))], True, path)
    with pytest.raises(SystemExit, match="another machine or in another way"):
        report.read(path, quick=False)
    stored = json.loads(path.read_text())
    stored["machine"]["cores"] = 1000
    path.write_text(json.dumps(stored))
    with pytest.raises(SystemExit, match="another machine"):
        report.read(path, quick=True)
