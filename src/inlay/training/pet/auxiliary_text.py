"""AuxiliaryText: a task with a language-model loss on unlabelled texts.

    loss = (1 - a) · task + a · Σ_texts mean over the text's tokens of -log p(token)

Every row of the task is paired with one unlabelled text in the same template: "auxiliary language
modeling" of PET (Schick & Schütze, EACL 2021). There a = 1e-4, and its released code reads as many
texts as rows.
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
class PairedBatch(Batch):
    """The batch of the task's rows, and that of the texts paired with them."""

    task: ClassifyBatch
    texts: ClassifyBatch


@dataclass(frozen=True, eq=False)
class PairedOutputs(Outputs):
    """The outputs for the task's rows, and the states for the texts paired with them."""

    task: Scores
    text: TextStates

    @override
    def divergence(self, other: Self) -> Tensor:
        return self.task.divergence(other.task)


@dataclass(frozen=True)
class PairedExample(Example):
    """An example with the unlabelled text that is read along with it."""

    text: Example


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRow(Row):
    """The row of an example and that of its text; as a row it has the tokens of both."""

    original: Row
    text: Row


def pair_with_texts(data: Sequence[Example], texts: Sequence[Example], seed: int) -> list[Example]:
    """Pair each example with a text; the shorter list is repeated.

    Args:
        data: the examples.
        texts: without labels; their order is drawn.
        seed: of the draw.
    """
    order = list(texts)
    random.Random(seed).shuffle(order)
    pairs = zip(cycle(data), cycle(order), strict=True)
    return [
        PairedExample(example.fields, example.where, text)
        for example, text in islice(pairs, max(len(data), len(order)))
    ]


@dataclass(kw_only=True)
class AuxiliaryText(Task[PairedBatch, PairedOutputs], listed=False):
    """A task with a language-model loss on the texts that are paired with its rows.

    task: a bound `Classify` task with a verbalizer.
    weight: a, of the language-model loss.
    """

    name: ClassVar[str] = "auxiliary_text"

    metric: str = ""
    task: Any
    weight: float

    @override
    def describe(self) -> dict[str, Any]:
        description = self._classify.describe()
        return {"task": self.name, "weight": self.weight, "classify": description}

    @property
    def _classify(self) -> Classify:
        return self.task

    @property
    @override
    def virtual_tokens(self) -> int:
        return self._classify.virtual_tokens

    @property
    @override
    def required_fields(self) -> tuple[str, ...]:
        return self._classify.required_fields

    @override
    def on_bind(self, bound: Bound, model: PreTrainedModel) -> None:
        """Do nothing: the task is bound by itself."""

    @override
    def encode_some(self, examples: Sequence[Example], first_index: int) -> list[Row]:
        texts = [example.text for example in examples if isinstance(example, PairedExample)]
        originals = self._classify.encode_all(examples)
        rows: list[Row] = []
        for original, text in zip(originals, self._classify.encode_all(texts), strict=True):
            values = {field.name: getattr(original, field.name) for field in fields(Row)}
            values["input_ids"] = original.input_ids + text.input_ids
            values["cost"] = original.cost + text.cost
            values["index"] = first_index + original.index
            rows.append(PairedRow(**values, original=original, text=text))
        return rows

    @override
    def collate(self, rows: Sequence[Row]) -> PairedBatch:
        pairs = [row for row in rows if isinstance(row, PairedRow)]
        texts = self._classify.collate([row.text for row in pairs])
        batch = self._classify.collate([row.original for row in pairs])
        return PairedBatch(batch.inputs, batch, texts)

    @override
    def outputs(self, model: PreTrainedModel, batch: PairedBatch) -> PairedOutputs:
        scores = self._classify.outputs(model, batch.task)
        return PairedOutputs(scores, self._classify.text_states(model, batch.texts))

    @override
    def loss(self, outputs: PairedOutputs, batch: PairedBatch) -> tuple[Tensor, int]:
        """Both losses; the count is that of the task."""
        loss, count = self._classify.loss(outputs.task, batch.task)
        return mixed(self.weight, loss, outputs.text), count

    @override
    def predict(self, model: PreTrainedModel, batch: PairedBatch) -> list[Any]:
        return self._classify.predict(model, batch.task)

    @override
    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        return self._classify.score(predictions, examples)
