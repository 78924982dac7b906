"""Starting values: random matrices, and the embeddings of words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from inlay.core.site import Site
from inlay.errors import SpecError


def kaiming(rows: int, columns: int) -> nn.Parameter:
    """`[rows, columns]`, uniform within ±1/√columns: what `nn.Linear` starts from."""
    return nn.Parameter(torch.empty(rows, columns).uniform_(-1, 1) / math.sqrt(columns))


def glorot(*shape: int) -> nn.Parameter:
    """Uniform within ±√(6 / (rows + columns)) of the last two sizes (Glorot & Bengio, 2010)."""
    bound = math.sqrt(6 / (shape[-2] + shape[-1]))
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


def normal(*shape: int, std: float, cut: float | None = None) -> nn.Parameter:
    """A normal distribution with that standard deviation, truncated at `cut` of them if given."""
    value = torch.empty(*shape)
    if cut is None:
        return nn.Parameter(value.normal_(0, std))
    return nn.Parameter(nn.init.trunc_normal_(value, 0, std, -cut * std, cut * std))


COMMON = 5000
"""How many of the most common tokens `start="common"` draws from (Lester et al., section 3.2).
Today's vocabularies are ordered by frequency."""


def common_tokens(method: object, vocabulary: int, count: int) -> list[int]:
    """Ids of different common tokens, drawn at random. Raises SpecError for too many."""
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


def embeddings(method: object, site: Site, groups: Sequence[Sequence[int]]) -> Tensor:
    """The input embeddings of token ids, one mean a group: `[N, D]`, fp32.

    Raises SpecError for an id that the base does not have.
    """
    check_tokens(method, groups, site.d_in)
    means = [
        site.host.forward(torch.tensor(tuple(group), device=site.device())).detach().float().mean(0)
        for group in groups
    ]
    return torch.stack(means)
