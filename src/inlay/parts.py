"""Arithmetic that more than one method is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inlay.errors import SpecError
from inlay.piece import Foldable, Piece, Slots, Tap, Tokens
from inlay.site import Site

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name. Raises SpecError for another."""
    if name not in ACTIVATIONS:
        raise SpecError(f"no activation is called {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x `[..., i]`, fp32 weight `[o, i]` -> `[..., o]` in the dtype of x."""
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def kaiming(rows: int, columns: int) -> nn.Parameter:
    """`[rows, columns]`, uniform within ±1/√columns: what `nn.Linear` starts from."""
    return nn.Parameter(torch.empty(rows, columns).uniform_(-1, 1) / math.sqrt(columns))


def normal(*shape: int, std: float, cut: float | None = None) -> nn.Parameter:
    """Normal numbers of that deviation, cut off at `cut` deviations where it is given."""
    value = torch.empty(*shape)
    if cut is None:
        return nn.Parameter(value.normal_(0, std))
    return nn.Parameter(nn.init.trunc_normal_(value, 0, std, -cut * std, cut * std))


COMMON = 5000
"""How many of the most common tokens a start from "common" draws from (Lester et al., 3.2). The
vocabularies of today are ordered by frequency."""


def common(method: object, vocabulary: int, count: int) -> list[int]:
    """Different ones of the most common tokens, at random. Raises SpecError for too many."""
    pool = min(COMMON, vocabulary)
    if pool < count:
        kind = type(method).__name__
        raise SpecError(f"{kind}: {count} positions, but only {pool} tokens to draw")
    return torch.randperm(pool, device="cpu")[:count].tolist()


def check_tokens(method: object, groups: Sequence[Sequence[int]], vocabulary: int) -> None:
    """Raise SpecError for an id that is none of so many tokens."""
    for number in (number for group in groups for number in group):
        if not 0 <= number < vocabulary:
            kind = type(method).__name__
            raise SpecError(f"{kind}: token id {number} is outside {vocabulary} tokens")


def embedded(method: object, site: Site, groups: Sequence[Sequence[int]]) -> Tensor:
    """The input embeddings of token ids, one mean a group: `[N, D]`, fp32.

    Raises SpecError for an id that the base does not have.
    """
    check_tokens(method, groups, site.d_in)
    made = [
        site.host.forward(torch.tensor(tuple(group), device=site.device())).detach().float().mean(0)
        for group in groups
    ]
    return torch.stack(made)


class Free(Piece):
    """Vectors that learn as they are, with nothing that makes them."""

    def __init__(self, values: Tensor):
        super().__init__()
        self.length = len(values)
        self.values = nn.Parameter(values)  # [N, D]

    def forward(self) -> Tensor:
        """-> `[N, D]`."""
        return self.values


class FreeSlots(Free, Slots):
    """Positions in front of the text."""


class FreeTokens(Free, Tokens):
    """Virtual tokens."""


class Bottleneck(nn.Module):
    """`U f(D x + b) + c`: down to M, a nonlinearity, up to D again."""

    def __init__(self, down: nn.Parameter, up: nn.Parameter, act: str):
        super().__init__()
        self.down = down  # [M, D]
        self.down_bias = nn.Parameter(torch.zeros(len(down)))
        self.up = up  # [D, M]
        self.up_bias = nn.Parameter(torch.zeros(len(up)))
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """x `[..., D]` -> `[..., D]`."""
        return linear(self.act(linear(x, self.down, self.down_bias)), self.up, self.up_bias)


class NormTwin(Foldable, Tap):
    """`y + g ⊙ x̂ + c`: a zeroed twin of a norm's gain, and of its bias where it has one."""

    def __init__(self, site: Site):
        super().__init__()
        self.normalised = site.normalised()
        self.gain = nn.Parameter(torch.zeros(site.d_out))  # [D]
        self.bias = nn.Parameter(torch.zeros(site.d_out)) if site.bias() is not None else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Tap`."""
        y = y + self.normalised(x) * self.gain.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See `Foldable`: w is the norm's gain, `[D]`."""
        return (
            w + self.gain.detach(),
            b if self.bias is None or b is None else b + self.bias.detach(),
        )
