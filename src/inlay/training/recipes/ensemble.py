"""Several inlays that learned the same task, asked at once: one forward pass, and a vote.

Lester et al., EMNLP 2021, section 6: every example stands in the batch once for each member.
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
from inlay.training.loop.batches import by_length
from inlay.training.loop.evaluation import chunks


@dataclass(frozen=True)
class Voted:
    """What members and their vote scored.

    singles: each member's scores. mean: their means. ensemble: the scores of the vote.
    predictions: what was voted for, one an example.
    """

    singles: list[dict[str, float]]
    mean: dict[str, float]
    ensemble: dict[str, float]
    predictions: list[Prediction]


def vote(
    model: PreTrainedModel,
    members: Sequence[Inlay],
    task: Task,
    data: Sequence[Example],
    *,
    batch_size: int = 16,
) -> Voted:
    """Ask all members about every example and let the majority decide.

    members: inlays attached to the model. task: bound to it. batch_size: examples a batch, each of
    which the model sees once a member. Ties are the task's to break: by the mean logit where it
    has one, else for the member that comes first.
    """
    said: list[list[Prediction]] = [[] for _ in members]
    won: list[Prediction] = []
    with evaluating(model):
        for chunk in chunks(data):
            read = task.encode_all(chunk)
            ballots, voted = _asked(model, members, task, read, batch_size)
            for place, own in enumerate(said):
                own += task.merge_windows(read, [ballot[place] for ballot in ballots], chunk)
            won += task.merge_windows(read, voted, chunk)
    singles = [task.score(own, data) for own in said]
    mean = {name: sum(one[name] for one in singles) / len(singles) for name in singles[0]}
    return Voted(singles, mean, task.score(won, data), won)


def _asked(
    model: PreTrainedModel,
    members: Sequence[Inlay],
    task: Task,
    read: Sequence[Row],
    batch_size: int,
) -> tuple[list[list[Any]], list[Any]]:
    """What the members say to each row, and what was voted for."""
    said: list[list[Any]] = [[] for _ in read]
    won: list[Any] = ["" for _ in read]
    names = [member.name for member in members]
    for numbers in by_length([len(row) for row in read], rows=batch_size, tokens=None):
        batch = task.collate([read[number] for number in numbers for _ in members])
        batch = batch.to(model.device)
        with rows(model, names * len(numbers)):
            each, voted = task.vote(model, batch, len(members))
        for place, number in enumerate(numbers):
            said[number] = each[place * len(members) : (place + 1) * len(members)]
            won[number] = voted[place]
    return said, won


def member(
    model: PreTrainedModel,
    spec: Spec,
    name: str,
    seed: int,
    number: int,
    prepared: Prepared | None = None,
) -> Inlay:
    """Member `number` of an ensemble, attached: it has a seed of its own, and but for the first a
    name of its own."""
    with rng.kept():
        rng.seed(seed + number)
        name = f"{name}-{number + 1}" if number else name
        return attach(model, spec, name=name, prepared=prepared)


def others(
    model: PreTrainedModel,
    first: Inlay,
    count: int,
    seed: int,
    teach: Callable[[Inlay, int], object],
    prepared: Prepared | None = None,
) -> list[Inlay]:
    """The members beside the first, which has learned, each attached and taught after the last.

    count: members in all. teach: given a member and its number, from 1.
    """
    made = []
    for number in range(1, count):
        made.append(member(model, first.spec, first.name, seed, number, prepared))
        teach(made[-1], number)
    return made
