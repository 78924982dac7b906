"""Several tasks at once: inlays that tasks share, and inlays of their own.

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

from inlay.core.method import ParameterGroup, Spec, sum_of
from inlay.data.dataset import Example
from inlay.errors import TrainingError
from inlay.handle import Inlay
from inlay.handle import rows as inlay_rows
from inlay.tasks import Batch, Outputs, Prediction, Row, Task
from inlay.tasks.base import Bound
from inlay.training.fit import train
from inlay.training.loop.results import Result


@dataclass(frozen=True)
class Lesson:
    """One task of a mixture.

    task: bound to the model. data: its training examples. inlays: what serves its rows, in order;
    an inlay that several lessons name is shared by them. dev: examples to evaluate on.
    """

    task: Task
    data: Sequence[Example]
    inlays: tuple[Inlay, ...]
    dev: Sequence[Example] = ()


def fit_mixture(model: PreTrainedModel, lessons: Sequence[Lesson], **given: Any) -> Result:
    """Train all inlays of several tasks together. To go on with one task, `fit` its own inlay.

    given: what `fit` takes by name, except `dev`, which every lesson brings. The score is the mean
    of the tasks' own metrics.

    Raises TrainingError as `fit` does, for `base_lr`, and where the lessons' inlays are not of this
    model.
    """
    if given.get("base_lr") is not None:
        raise TrainingError("a mixture leaves the base frozen; leave base_lr out, or fit one task")
    handles = tuple(dict.fromkeys(one for lesson in lessons for one in lesson.inlays))
    if not lessons or not all(lesson.inlays for lesson in lessons):
        raise TrainingError("a mixture needs at least one lesson, and each at least one inlay")
    for handle in handles:
        if not handle.attached or handle.model is not model:
            raise TrainingError(f"the inlay {handle.name!r} is not attached to this model")
    data, dev = (
        [
            LessonExample(example.fields, example.where, number)
            for number, lesson in enumerate(lessons)
            for example in (lesson.data if part == "data" else lesson.dev)
        ]
        for part in ("data", "dev")
    )
    mixture = Mixture(lessons=tuple(lessons))
    names = [handle.name for handle in handles]
    return train(model, JointInlays(handles), names, mixture, data, dev=dev or None, **given)


class JointInlays:
    """Several inlays as one that learns."""

    def __init__(self, handles: Sequence[Inlay]):
        self.handles = {handle.name: handle for handle in handles}
        self.name = "+".join(self.handles)
        self.model = handles[0].model

    @property
    def spec(self) -> Spec:
        """All specs, one after the other."""
        return sum_of([m for handle in self.handles.values() for m in handle.spec.methods])

    def parameter_groups(self, learning_rate: float | None = None) -> list[ParameterGroup]:
        """See `Inlay`."""
        handles = self.handles.values()
        return [group for handle in handles for group in handle.parameter_groups(learning_rate)]

    def penalty(self) -> Tensor | None:
        """The sum of all inlays' penalties."""
        penalties = [handle.penalty() for handle in self.handles.values()]
        terms = [penalty for penalty in penalties if penalty is not None]
        return torch.stack(terms).sum() if terms else None

    def after_step(self, progress: float) -> None:
        """Hand the end of a step on to every inlay."""
        for handle in self.handles.values():
            handle.after_step(progress)

    def training_state(self) -> dict[str, Tensor]:
        """See `Inlay`; names begin with that of the inlay."""
        return {
            f"{name}/{key}": tensor
            for name, handle in self.handles.items()
            for key, tensor in handle.training_state().items()
        }

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """See `Inlay`."""
        for name, handle in self.handles.items():
            own = {
                k.removeprefix(f"{name}/"): t for k, t in state.items() if k.startswith(f"{name}/")
            }
            handle.load_training_state(own)


@dataclass(frozen=True)
class LessonExample(Example):
    """An example that knows which lesson it belongs to."""

    lesson: int = 0


@dataclass(frozen=True, slots=True)
class LessonRow(Row):
    """A row that knows which lesson it belongs to, and what it is there."""

    lesson: int = 0
    own: Row | None = None


@dataclass(frozen=True, eq=False)
class MixtureBatch(Batch):
    """The batches of several lessons.

    lessons: by the number of the lesson. places: which rows of the whole each holds.
    """

    lessons: dict[int, Batch]
    places: dict[int, list[int]]

    @override
    def __len__(self) -> int:
        return sum(map(len, self.places.values()))


@dataclass(frozen=True, eq=False)
class MixtureOutputs(Outputs):
    """What each lesson's inlays give for its rows.

    names: of the inlays, by the number of the lesson. lessons: its outputs.
    """

    model: PreTrainedModel
    names: dict[int, list[str]]
    lessons: dict[int, Outputs]

    @override
    def divergence(self, other: Self) -> Tensor:
        sums = []
        for number, outputs in self.lessons.items():
            with inlay_rows(self.model, [self.names[number]]):
                sums.append(outputs.divergence(other.lessons[number]))
        return torch.stack(sums).sum()


@dataclass(kw_only=True)
class Mixture(Task[MixtureBatch, MixtureOutputs], listed=False):
    """The task of doing several tasks: each row as its own lesson says, with its own inlays."""

    name: ClassVar[str] = "mixture"

    metric: str = "mean"
    lessons: tuple[Any, ...] = ()

    def describe(self) -> dict[str, Any]:
        """See `Task`: what each lesson does, and by which inlays."""
        told = [
            {**one.task.describe(), "inlays": [inlay.name for inlay in one.inlays]}
            for one in self.lessons
        ]
        return {"task": self.name, "lessons": told}

    @property
    def required_fields(self) -> tuple[str, ...]:
        """See `Task`: each lesson's data was loaded for its own task."""
        return ()

    def on_bind(self, bound: Bound, model: PreTrainedModel) -> None:
        """See `Task`: every lesson's task is bound by itself."""

    @override
    def encode_some(self, examples: Sequence[Example], first_index: int) -> list[Row]:
        made: list[Row] = []
        for number, places in self._apart(examples).items():
            for row in self.lessons[number].task.encode_all([examples[place] for place in places]):
                facts = {field.name: getattr(row, field.name) for field in fields(Row)}
                facts["index"] = first_index + places[row.index]
                made.append(LessonRow(**facts, lesson=number, own=row))
        return sorted(made, key=lambda row: row.index)

    def collate(self, rows: Sequence[Row]) -> MixtureBatch:
        """See `Task`: the batches of all lessons, and the places of their rows."""
        places = self._apart(rows)
        lessons = {
            number: self.lessons[number].task.collate([_own(rows[place]) for place in own])
            for number, own in places.items()
        }
        return MixtureBatch({}, lessons, places)

    def outputs(self, model: PreTrainedModel, batch: MixtureBatch) -> MixtureOutputs:
        """See `Task`: each lesson's rows are served by its own inlays."""
        names = {number: self._names(number) for number in batch.lessons}
        outputs = {}
        for number, part in batch.lessons.items():
            with inlay_rows(model, [names[number]]):
                outputs[number] = self.lessons[number].task.outputs(model, part)
        return MixtureOutputs(model, names, outputs)

    def loss(self, outputs: MixtureOutputs, batch: MixtureBatch) -> tuple[Tensor, int]:
        """See `Task`: what counts in any lesson counts once."""
        losses, count = [], 0
        for number, part in batch.lessons.items():
            with inlay_rows(outputs.model, [outputs.names[number]]):
                task = self.lessons[number].task
                loss, counted = task.loss(outputs.lessons[number], part)
            losses.append(loss)
            count += counted
        return torch.stack(losses).sum(), count

    def predict(self, model: PreTrainedModel, batch: MixtureBatch) -> list[Any]:
        """See `Task`."""
        made: dict[int, Any] = {}
        for number, part in batch.lessons.items():
            with inlay_rows(model, [self._names(number)]):
                said = self.lessons[number].task.predict(model, part)
            made |= dict(zip(batch.places[number], said, strict=True))
        return [made[place] for place in range(len(made))]

    def merge_windows(
        self, rows: Sequence[Row], said: Sequence[Any], examples: Sequence[Example]
    ) -> list[Prediction]:
        """See `Task`: each lesson's task makes its own."""
        made: dict[int, Prediction] = {}
        mine = self._apart(rows)
        for number, places in self._apart(examples).items():
            at = {place: index for index, place in enumerate(places)}
            parts = [(rows[p], said[p]) for p in mine[number]]
            own = [replace(_own(row), index=at[row.index]) for row, _ in parts]
            task, data = self.lessons[number].task, [examples[place] for place in places]
            made |= dict(
                zip(places, task.merge_windows(own, [one for _, one in parts], data), strict=True)
            )
        return [made[place] for place in range(len(examples))]

    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        """See `Task`: each lesson's own metric, and their mean."""
        scores: dict[str, float] = {}
        for number, places in self._apart(examples).items():
            task = self.lessons[number].task
            own = task.score([predictions[p] for p in places], [examples[p] for p in places])
            scores[f"{number}/{task.metric}"] = own[task.metric]
        return {**scores, "mean": sum(scores.values()) / len(scores)}

    def _apart(self, parts: Sequence[Any]) -> dict[int, list[int]]:
        """The places of each lesson's examples or rows."""
        found: dict[int, list[int]] = {}
        for place, part in enumerate(parts):
            found.setdefault(part.lesson, []).append(place)
        return dict(sorted(found.items()))

    def _names(self, number: int) -> list[str]:
        """The names of a lesson's inlays, in order."""
        return [inlay.name for inlay in self.lessons[number].inlays]


def _own(row: Row) -> Row:
    """The row as its lesson's task made it."""
    assert isinstance(row, LessonRow)
    assert row.own is not None
    return row.own
