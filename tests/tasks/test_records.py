"""Records: what every task gives for a row without gold answers, with its right values."""

import math
from dataclasses import replace

import pytest
import torch

from inlay.core.modes import evaluating
from inlay.tasks import (
    BinaryCrossEntropy,
    Choose,
    Classify,
    Extract,
    Generate,
    Regress,
    Tag,
    TrainedHead,
    Verbalizer,
)
from inlay.tasks.records import entities, split_words, word_places
from inlay.training.loop.evaluation import predict, records_of
from tests import zoo
from tests.tasks import tiny

LABELS = ("bad", "fine", "good")


def bound(task, family="bert", **head):
    base = zoo.fresh(family)
    if task.head() is not None:
        tiny.add_head(base, task)
    tiny.bind(task, family, base)
    return base


def records(task, base, rows, **options):
    with evaluating(base):
        return records_of(base, task, tiny.examples(*rows), **options)


def test_a_label_has_its_probability_and_those_of_all_labels():
    task = Classify(by=TrainedHead(labels=LABELS))
    base = bound(task)
    rows = [{"text": f"the film was {word}"} for word in ("good", "bad", "dull and old", "new")]
    found = records(task, base, rows)
    assert [r["prediction"] for r in found] == predict(base, task, rows)
    with evaluating(base):
        batch = task.collate([task.encode(e, 0) for e in tiny.examples(*rows)])
        shares = task.outputs(base, batch).scores.softmax(1)
    for record, row in zip(found, shares, strict=True):
        assert list(record) == [column.name for column in task.record_columns]
        expected = dict(zip(LABELS, row.tolist(), strict=True))
        assert record["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert record["probability"] == max(record["probabilities"].values())


def test_a_temperature_changes_probabilities_and_no_prediction():
    task = Classify(by=TrainedHead(labels=LABELS))
    base = bound(task)
    rows = [{"text": f"the film was {word}"} for word in ("good", "bad", "dull and old", "new")]
    plain, hot = (records(task, base, rows, temperature=t) for t in (1.0, 4.0))
    for a, b in zip(plain, hot, strict=True):
        assert a["prediction"] == b["prediction"]
        scores = torch.tensor(list(a["probabilities"].values())).log() / 4
        expected = dict(zip(LABELS, scores.softmax(0).tolist(), strict=True))
        assert b["probabilities"] == pytest.approx(expected, abs=1e-5)


def test_gold_answers_are_not_read():
    task = Classify(by=TrainedHead(labels=LABELS))
    base = bound(task)
    rows = [{"text": "the film"}, {"text": "the film", "label": "unheard of"}]
    first, second = records(task, base, rows)
    assert first == second


def test_several_labels_have_a_probability_each():
    task = Classify(
        by=TrainedHead(labels=LABELS), objective=BinaryCrossEntropy(), metric="accuracy"
    )
    base = bound(task)
    (record,) = records(task, base, [{"text": "the film was good"}])
    likely = [label for label, share in record["probabilities"].items() if share > 0.5]
    assert record["prediction"] == likely
    assert list(record) == ["prediction", "probabilities"]


def test_a_verbalizer_names_its_word():
    task = Classify(
        by=Verbalizer(words={"yes": ["good", "fine"], "no": "bad"}), template="{text} it was"
    )
    base = bound(task, "llama")
    (record,) = records(task, base, [{"text": "the film"}])
    assert record["word"] == {"yes": "good", "no": "bad"}[record["prediction"]]
    assert sum(record["probabilities"].values()) == pytest.approx(1)
    assert list(record) == [column.name for column in task.record_columns]


def test_entities_are_spans_of_characters():
    words = ["Ann", "Lee", "saw", "Rome", ",", "twice"]
    tags = ["B-PER", "I-PER", "O", "B-LOC", "O", "O"]
    shares = [0.9, 0.7, 0.8, 0.6, 1.0, 1.0]
    text = "Ann  Lee saw Rome, twice"
    first, second = entities(words, tags, shares, text=text, plain=False)
    assert first == {
        "text": "Ann  Lee",
        "label": "PER",
        "start": 0,
        "end": 8,
        "score": pytest.approx(0.8),
    }
    assert second == {"text": "Rome", "label": "LOC", "start": 13, "end": 17, "score": 0.6}
    assert text[second["start"] : second["end"]] == "Rome"
    (_, place) = entities(words, tags, shares, text=None, plain=False)
    assert (place["start"], place["end"]) == (12, 16)  # in "Ann Lee saw Rome , twice"
    (only,) = entities(words, ["O"] * 5 + ["ADV"], shares, text=text, plain=True)
    assert (only["text"], only["label"]) == ("twice", "ADV")


def test_words_and_their_places():
    assert split_words("It's 3.5 € – naïve!") == [
        "It",
        "'",
        "s",
        "3",
        ".",
        "5",
        "€",
        "–",
        "naïve",
        "!",
    ]
    text = "a  b, a"
    assert word_places(split_words(text), text) == (text, [(0, 1), (3, 4), (4, 5), (6, 7)])
    assert word_places(["a", "c"], "a b") == ("a c", [(0, 1), (2, 3)])
    assert word_places([], "") == ("", [])


def test_tags_of_a_bare_text():
    task = Tag(labels=("B-X", "I-X", "O"))
    base = bound(task)
    rows = [{"text": "the cat, the dog"}, {"tokens": ["a", "dog"]}]
    complete = [task.complete_inputs(row) for row in rows]
    found = records(task, base, complete)
    assert [len(record["prediction"]) for record in found] == [5, 2]
    assert [record["prediction"] for record in found] == predict(base, task, complete)
    for row, record in zip(("the cat, the dog", "a dog"), found, strict=True):
        for entity in record["entities"]:
            assert row[entity["start"] : entity["end"]] == entity["text"]
            assert 0 < entity["score"] <= 1


def test_answers_have_offsets_and_a_score():
    context = "the cat sat on the mat and the dog was old  "
    task = Extract()
    base = bound(task)
    rows = [{"question": "the dog", "context": context}, {"question": "a cat", "context": context}]
    found = records(task, base, rows)
    assert [record["prediction"] for record in found] == predict(base, task, rows)
    for record in found:
        if record["prediction"]:
            assert context[record["start"] : record["end"]] == record["prediction"]
        else:
            assert record["start"] is record["end"] is None
        assert 0 < record["score"] <= 1


def test_answers_over_windows_are_those_of_predict():
    context = " ".join(tiny.WORDS)
    whole, short = Extract(), Extract(max_length=24, stride=4)
    base = bound(whole)
    tiny.bind(short, "bert", base)
    rows = [{"question": "the dog", "context": context}, {"question": "old", "context": context}]
    for task in (whole, short):
        found = records(task, base, rows)
        assert [record["prediction"] for record in found] == predict(base, task, rows)
        for record in found:
            if record["prediction"]:
                assert context[record["start"] : record["end"]] == record["prediction"]


def test_a_context_without_an_answer():
    task = Extract()
    base = bound(task)
    rows = [task.encode(e, 0) for e in tiny.examples({"question": "a", "context": "the cat sat"})]
    no = {"prediction": (2, 2, -1.0), "share": 0.2, "none": 0.7}
    (record,) = task.merge_records(rows, [no], tiny.examples({"context": "the cat sat"}))
    assert record == {"prediction": "", "start": None, "end": None, "score": 0.7}
    least = [no, {**no, "none": 0.4}]
    (record,) = task.merge_records(rows * 2, least, tiny.examples({"context": "the cat sat"}))
    assert record["score"] == 0.4
    del base


def test_numbers_and_choices():
    task = Regress()
    base = bound(task)
    rows = [{"text": "the cat"}, {"text": "a dog"}]
    assert [r["prediction"] for r in records(task, base, rows)] == pytest.approx(
        predict(base, task, rows)
    )
    task = Choose(by="sum")
    base = bound(task, "llama")
    rows = [
        {"text": "the cat", "choices": ["sat", "was old"]},
        {"text": "it was", "choices": ["good", "bad", "not bad"]},
    ]
    found = records(task, base, rows)
    assert [record["prediction"] for record in found] == predict(base, task, rows)
    for row, record in zip(rows, found, strict=True):
        assert record["choice"] == row["choices"][record["prediction"]]
        assert len(record["probabilities"]) == len(row["choices"])
        assert sum(record["probabilities"]) == pytest.approx(1)
        assert record["probability"] == max(record["probabilities"])


def test_texts_are_those_of_predict_with_and_without_targets():
    task = Generate(generation={"max_new_tokens": 5})
    base = bound(task, "llama")
    rows = [{"source": "the cat"}, {"source": "the dog sat", "target": ""}]
    found = records(task, base, rows)
    assert [r["prediction"] for r in found] == predict(
        base, task, [{"source": r["source"]} for r in rows]
    )


@pytest.mark.parametrize(
    ("task", "inputs"),
    [
        (Classify(), ("text",)),
        (Classify(template="{a} and {b}", by=TrainedHead(labels=("x", "y"))), ("a", "b")),
        (Tag(), ("tokens",)),
        (Extract(), ("context", "question")),
        (Regress(), ("text",)),
        (Choose(by="sum"), ("text", "choices")),
        (Generate(), ("source",)),
        (Generate(target="targets"), ("source",)),
        (Generate(chat="messages"), ("messages",)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_a_row_to_predict_needs(task, inputs):
    assert task.input_fields == inputs


def test_one_text_is_a_row_where_the_task_reads_one():
    assert Classify().inputs_of_text("a") == {"text": "a"}
    assert Tag().inputs_of_text("a b") == {"text": "a b", "tokens": ["a", "b"]}
    assert Generate(chat="messages").inputs_of_text("a") == {
        "messages": [{"role": "user", "content": "a"}]
    }
    tiny.refused(lambda: Extract().inputs_of_text("a"), "'context', 'question'", "one text cannot")


# ------------------------------------------------------------------------------------- mistakes


def test_how_wrong_a_record_is():
    (example,) = tiny.examples({"text": "a", "label": "good"})
    task = Classify(by=TrainedHead(labels=LABELS))
    shares = {"bad": 0.7, "fine": 0.1, "good": 0.2}
    wrong = task.mistake({"prediction": "bad", "probabilities": shares}, example)
    assert (wrong.cost, wrong.gold) == (pytest.approx(-math.log(0.2)), "good")
    assert task.mistake({"prediction": "good", "probabilities": shares}, example) is None
    several = replace(task, objective=BinaryCrossEntropy())
    (example,) = tiny.examples({"text": "a", "labels": ["good", "bad"]})
    wrong = several.mistake({"prediction": ["bad"], "probabilities": shares}, example)
    assert wrong.cost == pytest.approx(-math.log(0.7) - math.log(0.9) - math.log(0.2))
    (example,) = tiny.examples({"text": "a", "label": 2.5})
    assert Regress().mistake({"prediction": 1.0}, example).cost == 1.5
    (example,) = tiny.examples({"tokens": ["a", "b"], "tags": ["O", "B-X"]})
    tag = Tag(labels=("B-X", "O"))
    assert tag.mistake({"prediction": ["O", "O"]}, example).cost == 1
    assert tag.mistake({"prediction": ["O", "B-X"]}, example) is None
    (example,) = tiny.examples({"text": "a", "choices": ["x", "y"], "label": "y"})
    wrong = Choose(by="sum").mistake({"prediction": 0, "probabilities": [0.9, 0.1]}, example)
    assert (wrong.cost, wrong.gold) == (pytest.approx(-math.log(0.1)), "y")
    (example,) = tiny.examples({"source": "a", "target": "the old cat"})
    assert Generate().mistake({"prediction": "the old cat "}, example) is None
    assert 0 < Generate().mistake({"prediction": "an old dog"}, example).cost < 1
    (example,) = tiny.examples({"context": "a b", "answers": [{"text": "b", "start": 2}]})
    assert Extract().mistake({"prediction": "b", "score": 0.5}, example) is None
    assert Extract().mistake({"prediction": "x", "score": 0.5}, example).cost == pytest.approx(
        1.0005
    )
