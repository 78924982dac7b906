"""Predictions over a data set, in batches of like length, and their score.

Examples are taken in chunks: only one chunk's rows are encoded at a time, and of an example that
has its prediction only what the score needs is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any

from accelerate.utils import gather_object
from rich.console import Console
from transformers import PreTrainedModel

from inlay.core.modes import evaluating
from inlay.data.dataset import Example
from inlay.tasks import Prediction, Row, Task
from inlay.training.loop.batches import by_length
from inlay.training.loop.launch import processes
from inlay.training.loop.progress import Shown

Predicted = tuple[int, Any]
"""The number of a row, and what is said to it."""

CHUNK = 1000
"""How many examples are encoded at once. Rows of like length are found within a chunk."""

LABELS = 1000
"""Of how many different answers those that are equal are kept as one object."""


def predict(
    model: PreTrainedModel,
    task: Task,
    data: Iterable[Example],
    *,
    batch_size: int | None = 16,
    tokens: int | None = None,
    console: Console | None = None,
    what: str = "rows",
) -> list[Prediction]:
    """One prediction for every example, in their order, from a bound task.

    data: a data set, or anything that yields examples. batch_size: rows a batch; or None and
    `tokens`: the most tokens in one. console: where progress is shown; None for nowhere. what: the
    name of the data there. Several processes share the work, and each returns everything.
    """
    sizes: dict[str, int | None] = {"batch_size": batch_size, "tokens": tokens}
    pairs = predict_each(model, task, data, **sizes, console=console, what=what)
    return [said for _, said in pairs]


def evaluate(
    model: PreTrainedModel,
    task: Task,
    data: Iterable[Example],
    *,
    batch_size: int | None = 16,
    tokens: int | None = None,
    console: Console | None = None,
    what: str = "rows",
) -> dict[str, float]:
    """The task's metrics of the model's predictions; arguments as in `predict`.

    Its memory does not grow with the data, but for the predictions and what they are scored
    against, where `data` is not held in memory itself, such as a `Stream`.
    """
    answers = Answers(task)
    sizes: dict[str, int | None] = {"batch_size": batch_size, "tokens": tokens}
    pairs = predict_each(model, task, data, **sizes, console=console, what=what)
    for _ in answers.taking(pairs):
        pass
    return answers.score()


def predict_each(
    model: PreTrainedModel,
    task: Task,
    data: Iterable[Example],
    *,
    batch_size: int | None = 16,
    tokens: int | None = None,
    console: Console | None = None,
    what: str = "rows",
) -> Iterator[tuple[Example, Prediction]]:
    """Every example and its prediction, in order, a chunk at a time; arguments as in `predict`.

    The model is in evaluation mode until the last one is taken.
    """
    total = len(data) if isinstance(data, Sized) else None
    with (
        Shown(console or Console(quiet=True)) as shown,
        evaluating(model),
        shown.counting(f"evaluating {what}", total) as advance,
    ):
        for chunk in chunks(data):
            rows = task.encode_all(chunk)
            found: list[Predicted] = []
            over = 0
            for part in predictions(model, task, rows, batch_size, tokens):
                found += part
                done = len(found) * processes().num_processes * len(chunk) // len(rows)
                if total is not None:
                    advance(done - over)
                over = done
            said = merged(task, rows, found, chunk)
            del rows, found
            yield from zip(chunk, said, strict=True)
            del chunk, said


def chunks(data: Iterable[Example]) -> Iterator[list[Example]]:
    """The examples, so many at once as are encoded at once."""
    rest = iter(data)
    while True:
        if not (chunk := list(islice(rest, CHUNK))):
            return
        yield chunk
        del chunk  # before the next ones are read


class Answers:
    """Predictions and what they are scored against: all that is kept of an evaluation.

    task: scores them. predictions: one an example. gold: the examples, each with the fields that
    the task names as `gold_fields` alone; equal ones are mostly one object.
    """

    def __init__(self, task: Task):
        self.task = task
        self.predictions: list[Prediction] = []
        self.gold: list[Example] = []
        self._known: dict[Any, Example] = {}

    def taking(
        self, pairs: Iterable[tuple[Example, Prediction]]
    ) -> Iterator[tuple[Example, Prediction]]:
        """Keep what is needed of the pairs, and hand them on."""
        for example, said in pairs:
            self.predictions.append(said)
            self.gold.append(self._gold(example))
            yield example, said

    def score(self) -> dict[str, float]:
        """The task's metrics of all that was taken."""
        return self.task.score(self.predictions, self.gold)

    def confusion(self) -> dict[str, dict[str, int]]:
        """The task's table of confusions of all that was taken."""
        return self.task.confusion(self.predictions, self.gold)

    def _gold(self, example: Example) -> Example:
        names = self.task.gold_fields
        if names is None:
            return example
        kept = {name: example.fields[name] for name in names if name in example.fields}
        if any(isinstance(value, list) for value in kept.values()):
            return Example(kept, example.where)
        # 1, 1.0 and True are equal, and three labels.
        key = tuple((name, type(value), value) for name, value in kept.items())
        if key in self._known or len(self._known) < LABELS:
            return self._known.setdefault(key, Example(kept, example.where))
        return Example(kept, example.where)


def encoded(task: Task, data: Sequence[Example], what: str, shown: Shown) -> list[Row]:
    """All examples as rows; shows how far it is."""
    with shown.counting(f"encoding {what}", len(data)) as advance:
        return task.encode_all(data, advance)


def predictions(
    model: PreTrainedModel, task: Task, rows: Sequence[Row], batch: int | None, tokens: int | None
) -> Iterator[list[Predicted]]:
    """This process's share of the predictions, batch by batch. The model is in evaluation mode."""
    state = processes()
    costs = [len(row) for row in rows]
    device = model.device
    for numbers in by_length(costs, rows=batch, tokens=tokens)[
        state.process_index :: state.num_processes
    ]:
        batch = task.collate([rows[number] for number in numbers]).to(device)
        said = task.predict(model, batch)
        yield list(zip(numbers, said, strict=True))


def merged(
    task: Task, rows: Sequence[Row], own: list[Predicted], data: Sequence[Example]
) -> list[Prediction]:
    """One prediction for every example, in order, from the predictions of all processes."""
    everything = gather_object(own) if processes().num_processes > 1 else own
    said = [one for _, one in sorted(everything, key=lambda pair: pair[0])]
    return task.merge_windows(rows, said, data)
