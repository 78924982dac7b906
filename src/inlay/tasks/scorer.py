"""Scorer: how a bound `Classify` turns a batch into scores of its labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inlay.architectures.chart import Chart
from inlay.tasks.batch import Batch
from inlay.tasks.outputs import TextStates


@dataclass(frozen=True, eq=False)
class ClassifyBatch(Batch):
    """Texts to classify.

    positions: where the word of the label is predicted, in the flat `[B·T]`; None where a trained
        head decides, and in an encoder–decoder.
    labels: the numbers of the labels `[B]`, 0 or 1 for each label `[B, C]`, or a score for each
        label `[B, C]`; None where the rows have none.
    """

    positions: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class Scorer(ABC):
    """How labels are scored by one model.

    template: with what the tokenizer reads in the place of `{mask}`.
    mask_id: the token that stands for `{mask}`, or None where the text has none.
    """

    template: str | None
    mask_id: int | None

    def positions(self, texts: Sequence[Sequence[int]], width: int) -> Tensor | None:
        """Where the words are predicted, in the flat `[B·T]`; None where none are.

        Args:
            texts: the tokens of each row.
            width: T, to which the rows are padded.
        """
        return None

    @abstractmethod
    def scores(
        self, chart: Chart, model: PreTrainedModel, batch: ClassifyBatch
    ) -> tuple[Tensor, TextStates | None]:
        """The scores of the labels `[B, C]`, fp32, and the states of an auxiliary loss."""


def flat_positions(columns: Sequence[int], width: int) -> Tensor:
    """The positions in the flat `[B·T]` of one column in each row."""
    return torch.tensor(columns) + torch.arange(len(columns)) * width
