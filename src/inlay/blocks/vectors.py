"""Trained vectors: prompts and virtual tokens that nothing else makes."""

from __future__ import annotations

from torch import Tensor, nn

from inlay.core.piece import Piece, PromptVectors, VirtualTokens


class Free(Piece):
    """Vectors that learn as they are, with nothing that makes them."""

    def __init__(self, values: Tensor):
        super().__init__()
        self.length = len(values)
        self.values = nn.Parameter(values)  # [N, D]

    def forward(self) -> Tensor:
        """-> `[N, D]`."""
        return self.values


class FreePrompt(Free, PromptVectors):
    """Positions in front of the text."""


class FreeVirtualTokens(Free, VirtualTokens):
    """Virtual tokens."""
