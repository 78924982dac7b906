"""Several inlays in one batch, and what the majority of them says."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

import inlay
from inlay.laws.case import perturb
from inlay.tasks import Classify, Generate, Verbalizer
from inlay.tasks.outputs import Scores
from inlay.training import predict, vote
from inlay.training.recipes.ensemble import attach_member, train_further_members
from tests import zoo
from tests.tasks.tiny import examples, tokenizer

WORDS = {"yes": "good", "no": "bad", "red": "red"}
ROWS = examples(
    *({"text": f"the {word} sat", "label": "yes"} for word in ("cat", "dog", "film", "plot", "mat"))
)


def members(model, count):
    handles = []
    for number in range(count):
        torch.manual_seed(number)
        handles.append(inlay.attach(model, inlay.Prompt(length=2 + number), name=f"m{number}"))
        perturb(handles[-1])
    return handles


def bound(task, family="llama", kind="decoder"):
    model = zoo.fresh(family)
    task.bind(model, tokenizer(kind))
    return model


@pytest.mark.parametrize("together", [1000, 2])
def test_members_say_in_one_batch_what_each_says_alone(together, monkeypatch):
    monkeypatch.setattr("inlay.training.loop.evaluation.CHUNK", together)
    task = Classify(template="{text} was", by=Verbalizer(WORDS))
    model = bound(task)
    handles = members(model, 3)
    voted = vote(model, handles, task, ROWS, batch_size=2)
    predictions = []
    for handle in handles:
        with inlay.rows(model, [handle.name]):
            predictions.append(predict(model, task, ROWS))
    assert voted.members == [task.score(votes, ROWS) for votes in predictions]
    for position, votes in enumerate(zip(*predictions, strict=True)):
        counts = {label: votes.count(label) for label in votes}
        assert counts[voted.predictions[position]] == max(counts.values())
    mean = sum(scores["accuracy"] for scores in voted.members) / 3
    assert voted.mean["accuracy"] == mean
    assert voted.vote == task.score(voted.predictions, ROWS)


def test_each_member_starts_from_a_seed_of_its_own():
    model = zoo.fresh("llama")
    trained = []
    first = attach_member(model, inlay.Prompt(length=2), "one", 5, 0)
    handles = [
        first,
        *train_further_members(model, first, 3, 5, lambda *arguments: trained.append(arguments)),
    ]
    assert [handle.name for handle in handles] == ["one", "one-2", "one-3"]
    assert trained == [(handles[1], 1), (handles[2], 2)]
    starts = [next(handle.parameters()).detach().clone() for handle in handles]
    assert not any(torch.equal(a, b) for a, b in combinations(starts, 2))
    other = attach_member(model, inlay.Prompt(length=2), "again", 6, 1)
    assert not torch.equal(next(other.parameters()), starts[1])
    other = attach_member(model, inlay.Prompt(length=2), "anew", 6, 0)
    assert torch.equal(next(other.parameters()), starts[1])


def test_a_vote_of_one_is_its_own():
    task = Classify(template="{text} was", by=Verbalizer(WORDS))
    model = bound(task)
    (handle,) = members(model, 1)
    voted = vote(model, [handle], task, ROWS)
    assert voted.predictions == predict(model, task, ROWS)
    assert voted.vote == voted.members[0] == voted.mean


def test_ties_go_to_the_highest_mean_logit(monkeypatch):
    task = Classify(template="{text} was", by=Verbalizer(WORDS))
    model = bound(task)
    table = torch.tensor(
        [[3.0, 0, 0], [0, 9, 0], [5, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [9, 0, 0], [0, 0, 1]]
    )
    monkeypatch.setattr(task, "outputs", lambda model, batch: Scores(table))
    votes, winners = task.vote(model, {}, 2)
    assert votes == ["yes", "no", "yes", "no", "red", "red", "yes", "red"]
    assert winners == ["no", "yes", "red", "yes"]
    _, winners = task.vote(model, {}, 4)
    assert winners == ["no", "red"]


def test_texts_are_voted_on_too():
    task = Generate(generation={"max_new_tokens": 3})
    model = bound(task)
    rows = examples({"source": "the cat", "target": "a"}, {"source": "the dog sat", "target": "b"})
    handles = members(model, 3)
    voted = vote(model, handles, task, rows)
    assert len(voted.predictions) == 2
    with inlay.rows(model, ["m1"]):
        assert voted.members[1] == task.score(predict(model, task, rows), rows)
