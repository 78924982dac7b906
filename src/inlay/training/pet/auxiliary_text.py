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
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from inlay.data.dataset import Example
from inlay.tasks import Classify, Prediction, Row, Task
from inlay.tasks.auxiliary import mixed
from inlay.tasks.base import Batch, Bound

TEXT = "text/"
"""What begins the names of the texts' tensors in a batch."""


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
class Beside(Task, listed=False):
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
    def virtual(self) -> int:
        """See `Task`."""
        return self._of.virtual

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Task`."""
        return self._of.needs

    def check(self, bound: Bound, model: PreTrainedModel) -> None:
        """See `Task`: its task is bound by itself."""

    def _encode(self, examples: Sequence[Example], first: int) -> list[Row]:
        texts = [example.text for example in examples if isinstance(example, ExampleBeside)]
        pairs = zip(self._of.encode_all(examples), self._of.encode_all(texts), strict=True)
        made: list[Row] = []
        for own, text in pairs:
            facts = {field.name: getattr(own, field.name) for field in fields(Row)}
            facts["input_ids"] = own.input_ids + text.input_ids
            facts["cost"] = own.cost + text.cost
            facts["index"] = first + own.index
            made.append(RowBeside(**facts, own=own, text=text))
        return made

    def collate(self, rows: Sequence[Row]) -> Batch:
        """See `Task`: the task's batch, and that of the texts."""
        both = [row for row in rows if isinstance(row, RowBeside)]
        texts = self._of.collate([row.text for row in both])
        batch = self._of.collate([row.own for row in both])
        return batch | {TEXT + name: tensor for name, tensor in texts.items()}

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """See `Task`: what counts is what counts in the task."""
        texts = {
            name.removeprefix(TEXT): tensor
            for name, tensor in batch.items()
            if name.startswith(TEXT)
        }
        loss, count = self._of.loss(model, batch)
        return mixed(self.share, loss, self._of.text_loss(model, texts)), count

    def predict(self, model: PreTrainedModel, batch: Batch) -> list[Any]:
        """See `Task`: of the task's rows."""
        return self._of.predict(model, batch)

    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        """See `Task`."""
        return self._of.score(predictions, examples)
