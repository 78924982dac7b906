"""Vectors that are trained directly: prompts and virtual tokens without an MLP or encoder."""

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import override

from inlay.core.piece import Piece, PromptVectors, VirtualTokens


class Vectors(Piece):
    """Vectors that are trained directly."""

    def __init__(self, values: Tensor):
        super().__init__()
        self.length = len(values)
        self.values = nn.Parameter(values)  # [N, D]

    @override
    def forward(self) -> Tensor:
        return self.values


class PromptTable(Vectors, PromptVectors):
    """A prompt whose vectors are trained directly."""


class VirtualTokenTable(Vectors, VirtualTokens):
    """Virtual tokens whose vectors are trained directly."""
