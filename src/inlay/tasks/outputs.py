"""Outputs: what one run of the model gives for a batch, for the loss and for comparing runs.

    divergence(p, q) = ½ Σ [KL(p ‖ q) + KL(q ‖ p)] = ½ Σ_n Σ_c (p_nc − q_nc) (log p_nc − log q_nc)

A method that runs a batch several times, such as AdaMix, adds the divergence of two runs to the
loss. It is summed over what counts in the loss of the task, so both are divided by one count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.architectures.chart import Chart
from inlay.tasks.loss import symmetric_divergence, token_divergence, token_loss


class Outputs(ABC):
    """What one run of the model gives for a batch."""

    @abstractmethod
    def divergence(self, other: Self) -> Tensor:
        """The symmetrised KL divergence between two runs over the same batch.

        Summed over what counts in the task's loss: a scalar, at least in fp32, with gradients to
        both runs.
        """


@dataclass(frozen=True, eq=False)
class TokenStates(Outputs):
    """Hidden states at positions where a language model predicts a token.

    Logits are computed from them a chunk of positions at a time, and never all at once.

    hidden: final states, `[N, D]`.
    text: for an auxiliary language-model loss, where the task has one.
    """

    chart: Chart
    model: PreTrainedModel
    hidden: Tensor
    text: TextStates | None = None

    def loss(self, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """The summed cross entropy of targets `[N]`, weighted by weights `[N]`: a scalar, fp32."""
        return token_loss(self.chart, self.model, self.hidden, targets, weights=weights)

    @override
    def divergence(self, other: Self) -> Tensor:
        return token_divergence(self.chart, self.model, self.hidden, other.hidden)


@dataclass(frozen=True, eq=False)
class TextStates:
    """The run's states for the language-model loss on the text that it reads.

    states: `[N, D]`, where a token of the text is predicted. tokens: that token, `[N]`.
    weights: of each in the sum, `[N]`.
    """

    states: TokenStates
    tokens: Tensor
    weights: Tensor

    def loss(self) -> Tensor:
        """The weighted sum of the cross entropies: a scalar, fp32."""
        return self.states.loss(self.tokens, self.weights)


@dataclass(frozen=True, eq=False)
class Scores(Outputs):
    """Scores of classes, fp32.

    scores: `[..., C]`; -inf for a class that cannot be.
    text: for an auxiliary language-model loss, where the task has one.
    """

    scores: Tensor
    text: TextStates | None = None

    @override
    def divergence(self, other: Self) -> Tensor:
        """Of the softmax over C, summed over all leading dimensions."""
        return symmetric_divergence(self.scores, other.scores)


@dataclass(frozen=True, eq=False)
class BinaryScores(Scores):
    """Scores `[B, C]` of classes that are decided one by one, by a sigmoid."""

    @override
    def divergence(self, other: Self) -> Tensor:
        """Of each class's "no" and "yes", with the mean over C as in the loss."""
        both = symmetric_divergence(no_and_yes(self.scores), no_and_yes(other.scores))
        return both / self.scores.shape[-1]


@dataclass(frozen=True, eq=False)
class SpanScores(Scores):
    """Scores of every position as the start and as the end of a span, `[B, 2, T]`."""

    @override
    def divergence(self, other: Self) -> Tensor:
        """With the mean over start and end as in the loss."""
        return super().divergence(other) / 2


@dataclass(frozen=True, eq=False)
class Values(Outputs):
    """Predicted numbers, `[B]`, fp32."""

    values: Tensor

    @override
    def divergence(self, other: Self) -> Tensor:
        """The summed squared differences.

        That is the divergence of normal distributions of variance ½ around the values, of which
        the squared error is the negative log likelihood.
        """
        return (self.values - other.values).square().sum()


def no_and_yes(scores: Tensor) -> Tensor:
    """Scores of "yes" as scores of "no" and "yes": `[B, C]` -> `[B, C, 2]`."""
    return torch.stack([torch.zeros_like(scores), scores], -1)
