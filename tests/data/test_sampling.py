"""Samples: `limit` rows in all, or `shots` of each label."""

import random

from inlay.data import load
from inlay.data.labels import label_name
from tests.data.rows import refused


def test_shots_draws_as_many_of_each_label_in_order():
    rows = [{"text": str(n), "label": ["a", 1, 1.0][n % 3]} for n in range(30)]
    picked = load(rows, shots=3)
    counts = [label_name(example.fields["label"]) for example in picked]
    assert (counts.count("a"), counts.count("1")) == (3, 3)
    places = [int(example.fields["text"]) for example in picked]
    assert places == sorted(places)
    assert picked.examples == load(rows, shots=3).examples
    assert picked.examples != load(rows, shots=3, seed=1).examples
    assert len(load(rows, shots=10, columns={"label": "label"})) == 20


def test_shots_that_cannot_be_drawn():
    rows = [{"text": str(n), "label": "b" if n in (3, 4) else "a"} for n in range(10)]
    refused(rows, "2 rows of label 'b'", "shots=3", shots=3)
    refused(rows, "shots=0", shots=0)
    refused(rows, "limit", "shots", shots=1, limit=3)
    refused([{"text": "a"}], "rows#1: ", "shots=1", "label", shots=1)


def test_limit_draws_a_sample_in_order():
    rows = [{"text": str(number)} for number in range(50)]
    random.Random(1).shuffle(rows)
    picked = load(rows, limit=10)
    places = [int(example.where.removeprefix("rows#")) for example in picked]
    assert len(picked) == 10
    assert places == sorted(places) != list(range(1, 11))
    assert picked.examples == load(rows, limit=10).examples
    assert picked.examples != load(rows, limit=10, seed=1).examples
    assert len(load(rows, limit=500)) == 50
