"""fit_multitask: train several tasks at once, with inlays that they share and inlays of their own.

Every batch holds rows of all tasks, drawn from all of their data alike; each row is served by the
inlays of its own task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.data.dataset import Example
from inlay.errors import TrainingError
from inlay.handle import Inlay
from inlay.handle import rows as inlay_rows
from inlay.tasks import Batch, Outputs, Prediction, Row, Task
from inlay.tasks.base import Bound
from inlay.training.fit import train
from inlay.training.joint_inlays import JointInlays
from inlay.training.loop.results import Result


@dataclass(frozen=True)
class Subtask:
    """One of several tasks that are trained together.

    task: bound to the model.
    data: its training examples.
    inlays: those that serve its rows, in order; an inlay that several subtasks name is shared.
    dev: examples to evaluate on.
    """

    task: Task
    data: Sequence[Example]
    inlays: tuple[Inlay, ...]
    dev: Sequence[Example] = ()


def fit_multitask(model: PreTrainedModel, subtasks: Sequence[Subtask], **options: Any) -> Result:
    """Train all inlays of several tasks together. To go on with one task, `fit` its own inlay.

    Args:
        model: the base.
        subtasks: the tasks, with their data and inlays.
        **options: what `fit` takes by name, except `dev`, which every subtask has. The score is
            the mean of the tasks' own metrics.

    Raises TrainingError as `fit` does, for `base_lr`, and where the inlays are not of this model.
    """
    if options.get("base_lr") is not None:
        raise TrainingError(
            "training several tasks leaves the base frozen; leave base_lr out, or fit one task"
        )
    if not subtasks or not all(subtask.inlays for subtask in subtasks):
        raise TrainingError("give at least one subtask, and each at least one inlay")
    handles = tuple(dict.fromkeys(handle for subtask in subtasks for handle in subtask.inlays))
    for handle in handles:
        if not handle.attached or handle.model is not model:
            raise TrainingError(f"the inlay {handle.name!r} is not attached to this model")
    data, dev = (
        [
            SubtaskExample(example.fields, example.where, number)
            for number, examples in enumerate(parts)
            for example in examples
        ]
        for parts in ([s.data for s in subtasks], [s.dev for s in subtasks])
    )
    task = Multitask(subtasks=tuple(subtasks))
    names = [handle.name for handle in handles]
    return train(model, JointInlays(handles), names, task, data, dev=dev or None, **options)


@dataclass(frozen=True)
class SubtaskExample(Example):
    """An example with the number of its subtask."""

    subtask: int = 0


@dataclass(frozen=True, slots=True)
class SubtaskRow(Row):
    """A row with the number of its subtask, and the row that the subtask made."""

    subtask: int = 0
    original: Row | None = None


@dataclass(frozen=True, eq=False)
class MultitaskBatch(Batch):
    """The batches of several subtasks.

    subtasks: by the number of the subtask.
    positions: which rows of the whole batch each holds.
    """

    subtasks: dict[int, Batch]
    positions: dict[int, list[int]]

    @override
    def __len__(self) -> int:
        return sum(map(len, self.positions.values()))


@dataclass(frozen=True, eq=False)
class MultitaskOutputs(Outputs):
    """The outputs of each subtask, computed with its inlays.

    model: the base.
    names: of the inlays, by the number of the subtask.
    subtasks: the outputs, by the number of the subtask.
    """

    model: PreTrainedModel
    names: dict[int, list[str]]
    subtasks: dict[int, Outputs]

    @override
    def divergence(self, other: Self) -> Tensor:
        sums = []
        for number, outputs in self.subtasks.items():
            with inlay_rows(self.model, [self.names[number]]):
                sums.append(outputs.divergence(other.subtasks[number]))
        return torch.stack(sums).sum()


@dataclass(kw_only=True)
class Multitask(Task[MultitaskBatch, MultitaskOutputs], listed=False):
    """Several tasks as one: each row by its own task, served by its task's inlays."""

    name: ClassVar[str] = "multitask"

    metric: str = "mean"
    subtasks: tuple[Any, ...] = ()

    @override
    def describe(self) -> dict[str, Any]:
        descriptions = [
            {**subtask.task.describe(), "inlays": [handle.name for handle in subtask.inlays]}
            for subtask in self.subtasks
        ]
        return {"task": self.name, "subtasks": descriptions}

    @property
    @override
    def required_fields(self) -> tuple[str, ...]:
        """None: each subtask's data was loaded for its own task."""
        return ()

    @override
    def on_bind(self, bound: Bound, model: PreTrainedModel) -> None:
        """Do nothing: every subtask's task is bound by itself."""

    @override
    def encode_some(self, examples: Sequence[Example], first_index: int) -> list[Row]:
        rows: list[Row] = []
        for number, positions in _by_subtask(examples).items():
            part = [examples[position] for position in positions]
            for row in self.subtasks[number].task.encode_all(part):
                values = {field.name: getattr(row, field.name) for field in fields(Row)}
                values["index"] = first_index + positions[row.index]
                rows.append(SubtaskRow(**values, subtask=number, original=row))
        return sorted(rows, key=lambda row: row.index)

    @override
    def collate(self, rows: Sequence[Row]) -> MultitaskBatch:
        positions = _by_subtask(rows)
        batches = {
            number: self.subtasks[number].task.collate([_original(rows[p]) for p in part])
            for number, part in positions.items()
        }
        return MultitaskBatch({}, batches, positions)

    @override
    def outputs(self, model: PreTrainedModel, batch: MultitaskBatch) -> MultitaskOutputs:
        names = {number: self._inlay_names(number) for number in batch.subtasks}
        outputs = {}
        for number, part in batch.subtasks.items():
            with inlay_rows(model, [names[number]]):
                outputs[number] = self.subtasks[number].task.outputs(model, part)
        return MultitaskOutputs(model, names, outputs)

    @override
    def loss(self, outputs: MultitaskOutputs, batch: MultitaskBatch) -> tuple[Tensor, int]:
        """The sum over all subtasks: whatever counts in one of them weighs the same."""
        losses, total = [], 0
        for number, part in batch.subtasks.items():
            with inlay_rows(outputs.model, [outputs.names[number]]):
                task = self.subtasks[number].task
                loss, count = task.loss(outputs.subtasks[number], part)
            losses.append(loss)
            total += count
        return torch.stack(losses).sum(), total

    @override
    def predict(self, model: PreTrainedModel, batch: MultitaskBatch) -> list[Any]:
        predictions: dict[int, Any] = {}
        for number, part in batch.subtasks.items():
            with inlay_rows(model, [self._inlay_names(number)]):
                results = self.subtasks[number].task.predict(model, part)
            predictions |= dict(zip(batch.positions[number], results, strict=True))
        return [predictions[position] for position in range(len(predictions))]

    @override
    def merge_windows(
        self, rows: Sequence[Row], predictions: Sequence[Any], examples: Sequence[Example]
    ) -> list[Prediction]:
        merged: dict[int, Prediction] = {}
        rows_of = _by_subtask(rows)
        for number, positions in _by_subtask(examples).items():
            index = {position: local for local, position in enumerate(positions)}
            part = [rows[p] for p in rows_of[number]]
            results = self.subtasks[number].task.merge_windows(
                [replace(_original(row), index=index[row.index]) for row in part],
                [predictions[p] for p in rows_of[number]],
                [examples[position] for position in positions],
            )
            merged |= dict(zip(positions, results, strict=True))
        return [merged[position] for position in range(len(examples))]

    @override
    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        """Each subtask's primary metric as `<number>/<metric>`, and their mean."""
        scores: dict[str, float] = {}
        for number, positions in _by_subtask(examples).items():
            task = self.subtasks[number].task
            metrics = task.score(
                [predictions[p] for p in positions], [examples[p] for p in positions]
            )
            scores[f"{number}/{task.metric}"] = metrics[task.metric]
        return {**scores, "mean": sum(scores.values()) / len(scores)}

    def _inlay_names(self, number: int) -> list[str]:
        """The names of a subtask's inlays, in order."""
        return [handle.name for handle in self.subtasks[number].inlays]


def _by_subtask(parts: Sequence[Any]) -> dict[int, list[int]]:
    """The positions of each subtask's examples or rows."""
    positions: dict[int, list[int]] = {}
    for position, part in enumerate(parts):
        positions.setdefault(part.subtask, []).append(position)
    return dict(sorted(positions.items()))


def _original(row: Row) -> Row:
    """The row as its subtask's task made it."""
    assert isinstance(row, SubtaskRow)
    assert row.original is not None
    return row.original
