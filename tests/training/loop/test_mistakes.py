"""The worst mistakes of an evaluation, and no others in memory."""

from inlay.data.dataset import Example
from inlay.tasks import Extract, Regress, Tag
from inlay.training.loop.mistakes import WorstMistakes


def watch(task, count, pairs):
    worst = WorstMistakes(task, count)
    assert len(list(worst.watch(pairs))) == len(pairs)
    return worst


def test_the_worst_come_first_and_of_equal_ones_the_first():
    gold = [0, 5, 1, 5, 0, 3]
    pairs = [
        (Example({"text": f"t{n}", "label": label}, f"rows:{n}"), {"prediction": 0.0})
        for n, label in enumerate(gold)
    ]
    worst = watch(Regress(), 3, pairs)
    assert [row.where for row in worst.rows()] == ["rows:1", "rows:3", "rows:5"]
    assert [row.cost for row in worst.rows()] == [5, 5, 3]
    assert worst.wrong == 4
    assert [row.where for row in watch(Regress(), 1, pairs).rows()] == ["rows:1"]
    assert watch(Regress(), 0, pairs).rows() == []
    row = worst.rows()[0].to_json()
    assert row == {
        "where": "rows:1", "text": "t1", "gold": 5.0, "prediction": 0.0, "probability": None, "cost": 5.0,
    }  # fmt: skip


def test_the_text_is_what_the_task_reads():
    fields = {"context": "a b", "question": "what", "answers": [{"text": "b", "start": 2}]}
    (row,) = watch(Extract(), 1, [(Example(fields, "x"), {"prediction": "a", "score": 0.5})]).rows()
    assert (row.text, row.gold, row.probability) == ("a b | what", "b", 0.5)
    fields = {"tokens": ["a", "b"], "tags": ["O", "B-X"]}
    tag = Tag(labels=("B-X", "O"))
    (row,) = watch(tag, 1, [(Example(fields, "x"), {"prediction": ["O", "O"]})]).rows()
    assert row.text == "a b" and row.gold == ["O", "B-X"]
