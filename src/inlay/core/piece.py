"""What a method builds: pieces. A piece knows its numbers and its arithmetic, nothing else.

Seven kinds, by where their output goes:

    OutputDelta    sees x and y of a module, returns the new y
    InputMap  sees x before the module does, returns the new x
    Keys   more keys and values for one attention
    Slots  more positions for the backbone's input
    Tokens vectors for virtual tokens, anywhere in the text
    Deep   sees y of a module where virtual tokens stand, returns the new y
    Head   a classifier over the last hidden state; the task calls it, nothing is hooked

Letters in shapes: B batch, T positions, P extra positions, D width, H heads, K head width,
R rank, M bottleneck, C classes, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn


class Piece(nn.Module):
    """The root of the kinds. Numbers are fp32; the arithmetic runs in the dtype of its input."""

    kind: ClassVar[str]

    def export(self) -> dict[str, Tensor]:
        """What is needed to use the piece, by name: what a file holds.

        A piece that trains through something it later drops (an MLP, an LSTM) returns what is
        left after dropping it; its method's `served()` is the spec that reads it.
        """
        return {name: p.detach() for name, p in self.named_parameters()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `served` of an equal piece returned (names and shapes already checked)."""
        own = dict(self.named_parameters())
        for name, tensor in tensors.items():
            own[name].data.copy_(tensor)


class OutputDelta(Piece):
    """y' = f(x, y), at the exit of a module."""

    kind = "tap"

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x `[..., d_in]`, y `[..., d_out]` -> `[..., d_out]`."""


class InputMap(Piece):
    """x' = f(x), at the entrance of a module."""

    kind = "tap"

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x `[..., d_in]` -> `[..., d_in]`."""


class Foldable:
    """A mixin for taps that can be folded into their host's weights: mergeable means this."""

    @abstractmethod
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weights of a host that computes by itself what host and piece compute together.

        w `[d_out, d_in]` (a norm's gain `[d]`) and b `[d_out]` in fp32; b is None where the host
        has no bias, and stays None. Raises MergeError where that cannot be.
        """


class ExtraKV(Piece):
    """More keys and values, seen by every query in the same softmax as the text's own.

    shift: by how many positions the text moves back, as if it stood behind tokens.
    """

    kind = "keys"
    shift: int = 0

    @abstractmethod
    def forward(self) -> tuple[Tensor, Tensor]:
        """-> k, v: each `[H, P, K]`, H the key-value heads."""


class PromptVectors(Piece):
    """More positions in front of the text (behind the first token where a head reads that)."""

    kind = "slots"
    length: int

    @abstractmethod
    def forward(self) -> Tensor:
        """-> `[P, D]`, in the space of the input embeddings."""


class VirtualTokens(Piece):
    """Vectors for virtual tokens, which a text names by ids from V on (see `ports.tokens`)."""

    kind = "tokens"
    length: int

    @property
    def front(self) -> int:
        """How many stand in front of the text where no template places them: half of them."""
        return self.length // 2

    @abstractmethod
    def forward(self) -> Tensor:
        """-> `[N, D]`, in the space of the input embeddings."""


class VirtualTokenDelta(Piece):
    """y' = f(y, number), at the exit of a module, where virtual tokens of one piece stand.

    The method tells it which piece that is, when all of them stand.
    """

    kind = "tap"

    def belong(self, tokens: VirtualTokens) -> None:
        """From now on it is about the virtual tokens of this piece."""
        self._tokens = (tokens,)  # in a tuple, so that it is no part of this one

    @property
    def tokens(self) -> VirtualTokens:
        """The piece whose virtual tokens it is about."""
        return self._tokens[0]

    @abstractmethod
    def forward(self, y: Tensor, number: Tensor) -> Tensor:
        """y `[B, T, d_out]`, number `[B, T]` (n = the n-th virtual token, 0 = none) -> like y."""


class HeadPiece(Piece):
    """A trained classifier over the last hidden state.

    labels: its classes, in order. each: whether it classifies every token by itself. reads:
    "states", or "features": what the output embeddings are given, at one place a row.
    """

    kind = "head"
    labels: tuple[str, ...]
    each: bool = False
    reads: ClassVar[Literal["states", "features"]] = "states"

    @abstractmethod
    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden `[B, T, D]`, mask `[B, T]` (1 = text) -> logits `[B, C]`, or `[B, T, C]`."""


class SharedModule(nn.Module):
    """Runs `net()` once per forward pass of a stack, however many pieces and rows read it.

    The door of the stack renews it, outside of anything that is checkpointed.
    """

    def __init__(self, net: nn.Module, stack: str):
        super().__init__()
        self.net = net
        self.stack = stack
        self.value: Tensor | None = None
        self._made_of: tuple[int, ...] = ()

    def renew(self) -> None:
        """A new forward pass begins: run `net` again unless the old value must still be right."""
        versions = tuple(p._version for p in self.net.parameters())
        stale = self.value is None or self.value.requires_grad or versions != self._made_of
        if stale or torch.is_grad_enabled():
            self.value = self.net()
            self._made_of = versions

    def forward(self) -> Tensor:
        """The value of `net()` for this pass."""
        return self.net() if self.value is None else self.value

    def __getstate__(self) -> dict:  # a value with a graph can neither be copied nor pickled
        return {**self.__dict__, "value": None}
