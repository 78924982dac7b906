"""Ensembles of inlays that were trained on the same task: one forward pass, and a vote.

Lester et al., EMNLP 2021, section 6: every example is in the batch once for each member.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from inlay.core.method import Spec
from inlay.core.modes import evaluating
from inlay.data.dataset import Example
from inlay.handle import Inlay, attach, rows
from inlay.runtime.install import Prepared
from inlay.tasks import Prediction, Row, Task
from inlay.training.loop import rng
from inlay.training.loop.batches import batches_by_length
from inlay.training.loop.evaluation import chunks
from inlay.training.loop.moving import on_device


@dataclass(frozen=True)
class EnsembleResult:
    """The scores of the members of an ensemble and of their vote.

    members: each member's scores, by metric.
    mean: the mean over the members, by metric.
    vote: the scores of the majority vote, by metric.
    predictions: the winner of the vote, one for each example.
    """

    members: list[dict[str, float]]
    mean: dict[str, float]
    vote: dict[str, float]
    predictions: list[Prediction]


def vote(
    model: PreTrainedModel,
    members: Sequence[Inlay],
    task: Task,
    data: Sequence[Example],
    *,
    batch_size: int = 16,
) -> EnsembleResult:
    """Predict every example with all members and take the majority.

    Args:
        model: the base.
        members: inlays attached to it.
        task: bound to it. It breaks ties: by the mean logit where it has one, else for the member
            that comes first.
        data: the examples.
        batch_size: examples in a batch, each of which the model reads once for each member.
    """
    predictions: list[list[Prediction]] = [[] for _ in members]
    winners: list[Prediction] = []
    with evaluating(model):
        for chunk in chunks(data):
            encoded = task.encode_all(chunk)
            votes, chunk_winners = _vote_on_rows(model, members, task, encoded, batch_size)
            for number, results in enumerate(predictions):
                member_votes = [row_votes[number] for row_votes in votes]
                results += task.merge_windows(encoded, member_votes, chunk)
            winners += task.merge_windows(encoded, chunk_winners, chunk)
    scores = [task.score(results, data) for results in predictions]
    mean = {name: sum(s[name] for s in scores) / len(scores) for name in scores[0]}
    return EnsembleResult(scores, mean, task.score(winners, data), winners)


def _vote_on_rows(
    model: PreTrainedModel,
    members: Sequence[Inlay],
    task: Task,
    encoded: Sequence[Row],
    batch_size: int,
) -> tuple[list[list[Any]], list[Any]]:
    """The members' predictions for each row, and the winner of each row."""
    votes: list[list[Any]] = [[] for _ in encoded]
    winners: list[Any] = ["" for _ in encoded]
    names = [handle.name for handle in members]
    costs = [len(row) for row in encoded]
    for numbers in batches_by_length(costs, rows=batch_size, tokens=None):
        collated = task.collate([encoded[number] for number in numbers for _ in members])
        with rows(model, names * len(numbers)), on_device(model, collated) as batch:
            batch_votes, batch_winners = task.vote(model, batch, len(members))
        for position, number in enumerate(numbers):
            start = position * len(members)
            votes[number] = batch_votes[start : start + len(members)]
            winners[number] = batch_winners[position]
    return votes, winners


def attach_member(
    model: PreTrainedModel,
    spec: Spec,
    name: str,
    seed: int,
    number: int,
    prepared: Prepared | None = None,
) -> Inlay:
    """Attach member `number` of an ensemble, with starting values drawn from its own seed.

    Args:
        model: the base.
        spec: of all members.
        name: of the first member; the others are `<name>-2` and so on.
        seed: of the first member; the others count up from it.
        number: from 0.
        prepared: what `prepare` returned for the spec.
    """
    with rng.preserved():
        rng.seed(seed + number)
        member_name = f"{name}-{number + 1}" if number else name
        return attach(model, spec, name=member_name, prepared=prepared)


def train_further_members(
    model: PreTrainedModel,
    first: Inlay,
    count: int,
    seed: int,
    train: Callable[[Inlay, int], object],
    prepared: Prepared | None = None,
) -> list[Inlay]:
    """Attach and train the members after the first, one after the other.

    Args:
        model: the base.
        first: the first member, which is trained.
        count: how many members the ensemble has with it.
        seed: of the first member.
        train: called with each member and its number, from 1.
        prepared: what `prepare` returned for their spec.
    """
    members = []
    for number in range(1, count):
        handle = attach_member(model, first.spec, first.name, seed, number, prepared)
        train(handle, number)
        members.append(handle)
    return members
