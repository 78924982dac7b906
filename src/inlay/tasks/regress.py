"""regress: one text, or a pair -> a number, such as how alike two sentences are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from inlay.data.dataset import Example
from inlay.data.template import Template
from inlay.errors import DataError
from inlay.heads import classify as classify_by_head
from inlay.heads import head_inputs
from inlay.methods.head import Head
from inlay.tasks import metrics
from inlay.tasks.base import (
    Batch,
    Bound,
    Prediction,
    Row,
    field_of,
    labelled,
    need_head,
    need_labels,
)
from inlay.tasks.rows import INPUTS, Encoded, Reader, stacked
from inlay.tasks.templated import Templated

VALUE = ("value",)
"""The one label of the head: the number that it says."""


@dataclass(kw_only=True)
class Regress(Templated):
    """One text, or a pair -> the number `label`, by a trained head with one output.

    The head is a `Head(labels=("value",))` in the inlay, and learns by the squared error.

    template: how the fields are written, such as "{text} and {text_pair}"; None for `text` alone
        or with `text_pair`.
    metric: the primary metric.
    """

    name: ClassVar[str] = "regress"

    metric: metrics.RegressionMetric = "pearson"

    def head(self) -> Head:
        """See `Task`."""
        return Head(labels=VALUE)

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Task`."""
        return (*Template(self.template or "{text}").names, "label")

    @property
    def gold(self) -> tuple[str, ...]:
        """See `Task`."""
        return ("label",)

    def check(self, bound: Bound, model: PreTrainedModel) -> None:
        """See `Task`."""
        self._reader = Reader.of(bound, self.template, self.truncate)

    # ---------------------------------------------------------------- arithmetic

    def _encode(self, examples: Sequence[Example], first: int) -> list[Row]:
        read = self._reader.read(examples, [self.bound.limit] * len(examples))
        rows = []
        for place, (example, encoded) in enumerate(zip(examples, read, strict=True)):
            labels = [_number(example)] if "label" in example.fields else None
            ids = encoded.ids
            rows.append(Row(ids, labels, first + place, example.where, len(ids), encoded.types))
        return rows

    def collate(self, rows: Sequence[Row]) -> Batch:
        """See `Task`."""
        texts = [Encoded(row.input_ids, row.token_type_ids) for row in rows]
        batch = stacked(texts, self.bound.pad)
        if labelled(rows):
            batch["labels"] = torch.tensor([row.labels[0] for row in rows if row.labels])
        return batch

    def values(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """What the head says to each row, `[B]`, fp32."""
        need_head(model, self.head())
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        states, mask = head_inputs(model, self.chart(model), **inputs)
        return classify_by_head(model, states, mask).float().squeeze(1)

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """See `Task`: squared errors, and how many rows there are."""
        labels = need_labels(batch, "labels")
        return F.mse_loss(self.values(model, batch), labels, reduction="sum"), len(labels)

    @torch.no_grad()
    def predict(self, model: PreTrainedModel, batch: Batch) -> list[float]:
        """See `Task`: the number itself."""
        return self.values(model, batch).tolist()

    @torch.no_grad()
    def ballot(
        self, model: PreTrainedModel, batch: Batch, members: int
    ) -> tuple[list[float], list[float]]:
        """See `Task`: numbers have no majority, so their mean decides."""
        said = self.values(model, batch)
        return said.tolist(), said.unflatten(0, (-1, members)).mean(1).tolist()

    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        """See `Task`."""
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
