"""Texts beside a task: while the base learns to answer, it goes on being asked to read.

    loss = (1 - a) · task + a · Σ_texts mean over the text's tokens of -log p(token)

Every row of the task comes with one text without a label, written in the same template: "auxiliary
language modeling" of PET (Schick & Schütze, EACL 2021). There a = 1e-4, and its released code reads
as many texts as rows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import cycle, islice
from typing import Any, ClassVar, Self

from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.data.dataset import Example
from inlay.tasks import Batch, Classify, Outputs, Prediction, Row, Task
from inlay.tasks.auxiliary import mixed
from inlay.tasks.base import Bound
from inlay.tasks.outputs import Scores, TextStates
from inlay.tasks.scorer import ClassifyBatch


@dataclass(frozen=True, eq=False)
class BesideBatch(Batch):
    """Rows of a task, and the texts beside them."""

    task: ClassifyBatch
    texts: ClassifyBatch


@dataclass(frozen=True, eq=False)
class BesideOutputs(Outputs):
    """A run over the rows of a task, and one over the texts beside them."""

    task: Scores
    text: TextStates

    @override
    def divergence(self, other: Self) -> Tensor:
        return self.task.divergence(other.task)


@dataclass(frozen=True)
class ExampleBeside(Example):
    """An example, and the text that is read beside it."""

    text: Example


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBeside(Row):
    """A row and the text's, each by itself; as a row it has the tokens of both."""

    own: Row
    text: Row


def beside(data: Sequence[Example], texts: Sequence[Example], seed: int) -> list[Example]:
    """Each example with a text; of the shorter list every one comes again and again.

    texts: in an order drawn from the seed.
    """
    order = list(texts)
    random.Random(seed).shuffle(order)
    pairs = zip(cycle(data), cycle(order), strict=True)
    return [
        ExampleBeside(example.fields, example.where, text)
        for example, text in islice(pairs, max(len(data), len(order)))
    ]


@dataclass(kw_only=True)
class Beside(Task[BesideBatch, BesideOutputs], listed=False):
    """A bound task with a verbalizer, and a text beside each of its rows. share: a."""

    name: ClassVar[str] = "beside"

    metric: str = ""
    task: Any
    share: float

    def describe(self) -> dict[str, Any]:
        """See `Task`."""
        return {"task": self.name, "share": self.share, "of": self._of.describe()}

    @property
    def _of(self) -> Classify:
        return self.task

    @property
    def virtual_tokens(self) -> int:
        """See `Task`."""
        return self._of.virtual_tokens

    @property
    def required_fields(self) -> tuple[str, ...]:
        """See `Task`."""
        return self._of.required_fields

    def on_bind(self, bound: Bound, model: PreTrainedModel) -> None:
        """See `Task`: its task is bound by itself."""

    @override
    def encode_some(self, examples: Sequence[Example], first_index: int) -> list[Row]:
        texts = [example.text for example in examples if isinstance(example, ExampleBeside)]
        pairs = zip(self._of.encode_all(examples), self._of.encode_all(texts), strict=True)
        made: list[Row] = []
        for own, text in pairs:
            facts = {field.name: getattr(own, field.name) for field in fields(Row)}
            facts["input_ids"] = own.input_ids + text.input_ids
            facts["cost"] = own.cost + text.cost
            facts["index"] = first_index + own.index
            made.append(RowBeside(**facts, own=own, text=text))
        return made

    def collate(self, rows: Sequence[Row]) -> BesideBatch:
        """See `Task`: the task's batch, and that of the texts."""
        both = [row for row in rows if isinstance(row, RowBeside)]
        texts = self._of.collate([row.text for row in both])
        batch = self._of.collate([row.own for row in both])
        return BesideBatch(batch.inputs, batch, texts)

    def outputs(self, model: PreTrainedModel, batch: BesideBatch) -> BesideOutputs:
        """See `Task`: the rows and the texts are read one after the other."""
        scores = self._of.outputs(model, batch.task)
        return BesideOutputs(scores, self._of.text_states(model, batch.texts))

    def loss(self, outputs: BesideOutputs, batch: BesideBatch) -> tuple[Tensor, int]:
        """See `Task`: what counts is what counts in the task."""
        loss, count = self._of.loss(outputs.task, batch.task)
        return mixed(self.share, loss, outputs.text), count

    def predict(self, model: PreTrainedModel, batch: BesideBatch) -> list[Any]:
        """See `Task`: of the task's rows."""
        return self._of.predict(model, batch.task)

    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        """See `Task`."""
        return self._of.score(predictions, examples)
