"""regress: one text, or a pair -> a number, such as how similar two sentences are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.data.dataset import Example
from inlay.data.template import Template
from inlay.errors import DataError
from inlay.methods.head import Head
from inlay.runtime.trained_heads import classify, head_inputs
from inlay.tasks import metrics
from inlay.tasks.base import Bound, Prediction
from inlay.tasks.batch import Batch
from inlay.tasks.outputs import Values
from inlay.tasks.reader import Encoded, Reader, text_inputs
from inlay.tasks.records import PREDICTION, Column, Mistake, Record
from inlay.tasks.requirements import require_head
from inlay.tasks.rows import Row, field_of, have_labels, require_labels
from inlay.tasks.templated import Templated

VALUE = ("value",)
"""The one label of the head, whose score is the predicted number."""


@dataclass(frozen=True, eq=False)
class RegressBatch(Batch):
    """Texts and the number of each. labels: `[B]`; None where the rows have none."""

    labels: Tensor | None = None


@dataclass(kw_only=True)
class Regress(Templated[RegressBatch, Values]):
    """One text, or a pair -> the number `label`, by a trained head with one output.

    The head is a `Head(labels=("value",))` in the inlay, and learns by the squared error.

    template: how the fields are written, such as "{text} and {text_pair}"; None for `text` alone
        or with `text_pair`.
    metric: the primary metric.
    """

    name: ClassVar[str] = "regress"

    metric: metrics.RegressionMetric = "pearson"

    @override
    def head(self) -> Head:
        return Head(labels=VALUE)

    @property
    @override
    def required_fields(self) -> tuple[str, ...]:
        return (*Template(self.template or "{text}").names, "label")

    @property
    @override
    def gold_fields(self) -> tuple[str, ...]:
        return ("label",)

    @override
    def check(self, example: Example) -> None:
        if "label" in example.fields:
            _number(example)

    @override
    def on_bind(self, bound: Bound, model: PreTrainedModel) -> None:
        self._reader = Reader.for_text(bound, self.template, self.truncate)

    @override
    def encode_some(self, examples: Sequence[Example], first_index: int) -> list[Row]:
        encoded = self._reader.read(examples, [self.bound.max_length] * len(examples))
        rows = []
        for index, (example, text) in enumerate(zip(examples, encoded, strict=True), first_index):
            labels = [_number(example)] if "label" in example.fields else None
            types = text.token_type_ids
            rows.append(Row(text.ids, labels, index, example.where, len(text.ids), types))
        return rows

    @override
    def collate(self, rows: Sequence[Row]) -> RegressBatch:
        texts = [Encoded(row.input_ids, row.token_type_ids) for row in rows]
        labels = None
        if have_labels(rows):
            labels = torch.tensor([row.labels[0] for row in rows if row.labels])
        return RegressBatch(text_inputs(texts, self.bound.pad_id), labels)

    @override
    def outputs(self, model: PreTrainedModel, batch: RegressBatch) -> Values:
        require_head(model, self.head())
        states, mask = head_inputs(model, self.chart(model), **batch.inputs)
        return Values(classify(model, states, mask).float().squeeze(1))

    @override
    def loss(self, outputs: Values, batch: RegressBatch) -> tuple[Tensor, int]:
        """Squared errors, and how many rows there are."""
        labels = require_labels(batch.labels)
        return F.mse_loss(outputs.values, labels, reduction="sum"), len(labels)

    @torch.no_grad()
    @override
    def predict(self, model: PreTrainedModel, batch: RegressBatch) -> list[float]:
        return self.outputs(model, batch).values.tolist()

    @property
    @override
    def record_columns(self) -> tuple[Column, ...]:
        return (Column(PREDICTION, "number", "the number"),)

    @override
    def mistake(self, record: Record, example: Example) -> Mistake | None:
        """The cost is the distance from the right number."""
        gold = _number(example)
        distance = abs(record[PREDICTION] - gold)
        return Mistake(distance, gold) if distance else None

    @torch.no_grad()
    @override
    def vote(
        self, model: PreTrainedModel, batch: RegressBatch, members: int
    ) -> tuple[list[float], list[float]]:
        """Numbers have no majority, so the winner is their mean."""
        values = self.outputs(model, batch).values
        return values.tolist(), values.unflatten(0, (-1, members)).mean(1).tolist()

    @override
    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        return metrics.regression(predictions, [_number(example) for example in examples])


def _number(example: Example) -> float:
    """The label of an example as a number. Raises DataError."""
    label = field_of(example, "label")
    try:
        number = math.nan if isinstance(label, bool) else float(label)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{example.where}: label {label!r:.80} is not a number")
    return number
