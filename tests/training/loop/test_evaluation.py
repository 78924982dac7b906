"""Evaluation: a chunk at a time, and nothing kept but predictions and what they are scored by."""

import json
import weakref
from dataclasses import dataclass
from typing import ClassVar

import pytest

from inlay.data.dataset import Example
from inlay.data.loading import load, stream
from inlay.errors import DataError
from inlay.tasks import Choose, Extract, Generate, Regress, Tag
from inlay.tasks.base import TASKS, Row
from inlay.training import Recipe, evaluate, predict
from inlay.training.loop.evaluation import PredictionCollector, predict_each
from tests.training import tiny


class Seen(Row):
    """A row of which one can tell whether it is still there."""


@dataclass(kw_only=True)
class Counted(tiny.Recite):
    """Recite that knows how many of its rows are alive, and keeps no texts."""

    name: ClassVar[str] = "counted"

    def encode_some(self, examples, first):
        created = []
        for row in super().encode_some(examples, first):
            names = ("input_ids", "labels", "index", "where", "cost")
            created.append(Seen(*(getattr(row, name) for name in names)))
            self.created.append(weakref.ref(created[-1]))
        self.most = max(self.most, self.alive())
        return created

    def alive(self):
        return sum(ref() is not None for ref in self.created)

    @property
    def gold_fields(self):
        return ("label",)


del TASKS[Counted.name]


def counted(model):
    task = tiny.task(model, Counted)
    task.created, task.most = [], 0
    return task


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("inlay.training.loop.evaluation.CHUNK", 10)


def test_only_one_chunk_is_encoded_at_a_time(small):
    model = tiny.base()
    task = counted(model)
    scores = evaluate(model, task, iter(tiny.examples(95)), batch_size=4)
    assert 0 < task.most <= 10
    assert len(task.created) == 95 and not task.alive(), "and none at the end"
    assert scores == pytest.approx(evaluate(model, tiny.task(model), tiny.examples(95)))


def test_examples_are_let_go(small):
    """What reads from a file never holds more examples than a chunk."""
    model, references = tiny.base(), []
    task = counted(model)
    fields = [example.fields for example in tiny.examples(60)]
    most = 0

    class Fields(dict):
        """A dict that can be watched."""

    def examples():
        nonlocal most
        for number, example in enumerate(fields):
            values = Fields({**example, "label": number % 3})
            references.append(weakref.ref(values))
            most = max(most, sum(ref() is not None for ref in references))
            yield Example(values, f"row {number}")

    answers = PredictionCollector(task)
    for _ in answers.collect(predict_each(model, task, examples(), batch_size=4)):
        pass
    assert most <= 10 + 2
    assert [example.fields for example in answers.gold] == [{"label": n % 3} for n in range(60)]
    assert len({id(example) for example in answers.gold}) == 3, "equal answers are one object"


def test_chunks_change_no_prediction(monkeypatch):
    model, data = tiny.base(), tiny.examples(33)
    task = tiny.task(model)
    whole = predict(model, task, data, batch_size=4)
    monkeypatch.setattr("inlay.training.loop.evaluation.CHUNK", 5)
    parts = predict(model, task, iter(data), batch_size=4)
    assert list(map(float, parts)) == pytest.approx(list(map(float, whole)), rel=1e-5)
    assert predict(model, task, []) == []


def test_equal_numbers_of_other_types_stay_apart():
    model = tiny.base()
    answers = PredictionCollector(counted(model))
    labels = [1, True, 1.0, "1", 1]
    for _ in answers.collect((Example({"label": value}, "x"), "") for value in labels):
        pass
    assert [type(value.fields["label"]) for value in answers.gold] == [int, bool, float, str, int]


ROWS = {
    "generate": (Generate(), {"source": "a", "target": "b"}, "b"),
    "several": (Generate(target="targets"), {"source": "a", "targets": ["b", "c"]}, "c"),
    "chat": (
        Generate(chat="messages"),
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        "b",
    ),
    "tag": (Tag(), {"tokens": ["a", "b"], "tags": ["O", "B-x"]}, ["O", "B-x"]),
    "extract": (
        Extract(),
        {"context": "a b", "question": "c", "answers": [{"text": "b", "start": 2}]},
        "b",
    ),
    "choose": (Choose(), {"premise": "a", "choices": ["b", "c"], "label": 1}, 1),
    "choose by name": (
        Choose(choices=["x", "y"]),
        {"premise": "a", "x": "b", "y": "c", "label": 1},
        1,
    ),
    "regress": (Regress(), {"text": "a", "label": 2}, 2.0),
}


@pytest.mark.parametrize(("task", "fields", "prediction"), ROWS.values(), ids=ROWS)
def test_a_task_is_scored_by_its_gold_fields_alone(task, fields, prediction):
    rows = [Example({**fields, "text_pair": "x"}, "rows#1")]
    answers = PredictionCollector(task)
    for _ in answers.collect((row, prediction) for row in rows):
        pass
    assert set(answers.gold[0].fields) == set(task.gold_fields) < {*fields, "text_pair"}
    assert answers.score() == task.score([prediction], rows)


# -------------------------------------------------------------------------------- streams


def test_a_stream_is_what_load_reads_and_is_read_anew(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"a": f"t{n}", "label": n}) + "\n" for n in range(5)))
    arguments = {"columns": {"text": "a"}, "template": {"source": "{a}!"}, "need": ["label"]}
    examples = stream(path, **arguments)
    assert list(examples) == list(examples) == list(load(path, **arguments).examples)
    assert (len(examples), examples.source, examples.skipped) == (5, str(path), ())


def test_a_stream_finds_bad_rows_at_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": [1]}\n{"text": "b"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:2: column 'text' is a list"):
        stream(path)
    examples = stream(path, skip_bad=True)
    assert [row.fields["text"] for row in examples] == ["a", "b"] and len(examples) == 2
    assert [row.where for row in examples.skipped] == [f"{path}:2"]
    path.write_text("")
    with pytest.raises(DataError, match="holds no rows"):
        stream(path)


def test_a_sample_is_drawn_and_not_streamed(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"t{n}", "label": n % 2}) + "\n" for n in range(9)))
    task = Regress()
    for limits in ({"limit": 3}, {"shots": 2}, {}):
        recipe = Recipe.model_validate(
            {
                "base": "x",
                "method": "LoRA",
                "out": "x",
                "task": {"kind": "regress"},
                "data": {"train": {"source": str(path), "seed": 3, **limits}},
            }
        )
        source = recipe.data.train
        assert list(source.stream(task)) == list(source.load(task))


def test_rows_may_be_plain_mappings():
    model = tiny.base()
    task = tiny.task(model)
    examples = tiny.examples(5)
    rows = [dict(example.fields) for example in examples]
    assert predict(model, task, rows) == predict(model, task, examples)
    assert predict(model, task, iter(rows)) == predict(model, task, examples)
    assert evaluate(model, task, rows) == evaluate(model, task, examples)
    for data, message in (
        ("1 2", "'1 2' is one row, and a list of rows is read"),
        ([rows[0], 7], "row 2 is 7, not a row"),
    ):
        with pytest.raises(DataError, match=message):
            predict(model, task, data)
