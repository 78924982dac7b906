"""The bottleneck of adapters: down to a small width, a nonlinearity, and up again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inlay.errors import PortError, SpecError

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
        """x `[..., D]` -> `[..., D]`. Raises PortError where the base has another width here."""
        if x.shape[-1] != self.down.shape[1]:
            raise PortError(
                f"an adapter for vectors of {self.down.shape[1]} is given {list(x.shape)}: this "
                "sub-layer changes the width; choose other places by at="
            )
        return linear(self.act(linear(x, self.down, self.down_bias)), self.up, self.up_bias)
