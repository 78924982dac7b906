"""Predictions over a data set, in batches of like length, and their score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from accelerate.utils import gather_object
from rich.console import Console
from transformers import PreTrainedModel

from inlay.data import Example
from inlay.layout import evaluating
from inlay.tasks import Prediction, Row, Task
from inlay.training.batches import by_length
from inlay.training.launch import processes
from inlay.training.progress import Shown

Predicted = tuple[int, Any]
"""The number of a row, and what is said to it."""


def predict(
    model: PreTrainedModel,
    task: Task,
    data: Sequence[Example],
    *,
    batch_size: int | None = 16,
    tokens: int | None = None,
    console: Console | None = None,
    what: str = "rows",
) -> list[Prediction]:
    """One prediction for every example, in their order, from a bound task.

    batch_size: rows a batch; or None and `tokens`: the most tokens in one. console: where progress
    is shown; None for nowhere. what: the name of the data there. Several processes share the work,
    and each returns everything.
    """
    with Shown(console or Console(quiet=True)) as shown, evaluating(model):
        rows = encoded(task, data, what, shown)
        found: list[Predicted] = []
        with shown.counting(f"evaluating {what}", len(rows)) as advance:
            for part in predictions(model, task, rows, batch_size, tokens):
                found += part
                advance(len(part) * processes().num_processes)
    return merged(task, rows, found, data)


def evaluate(
    model: PreTrainedModel,
    task: Task,
    data: Sequence[Example],
    *,
    batch_size: int | None = 16,
    tokens: int | None = None,
    console: Console | None = None,
    what: str = "rows",
) -> dict[str, float]:
    """The task's metrics of the model's predictions; arguments as in `predict`."""
    sizes: dict[str, int | None] = {"batch_size": batch_size, "tokens": tokens}
    return task.score(predict(model, task, data, **sizes, console=console, what=what), data)


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
        made = task.collate([rows[number] for number in numbers])
        said = task.predict(model, {name: t.to(device) for name, t in made.items()})
        yield list(zip(numbers, said, strict=True))


def merged(
    task: Task, rows: Sequence[Row], own: list[Predicted], data: Sequence[Example]
) -> list[Prediction]:
    """One prediction for every example, in order, from the predictions of all processes."""
    everything = gather_object(own) if processes().num_processes > 1 else own
    said = [one for _, one in sorted(everything, key=lambda pair: pair[0])]
    return task.whole(rows, said, data)
