"""Kronecker products of matrices, applied without forming them.

The product of A `[a_out, a_in]` and B `[b_out, b_in]` is a matrix of `a_out · b_out` rows and
`a_in · b_in` columns that has `a_out · a_in + b_out · b_in` parameters and the rank of A times
that of B. Written as an `[a_in, b_in]` matrix X, its input becomes A X Bᵀ.
"""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

from inlay.blocks.bottleneck import linear


def kronecker(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x `[..., a_in · b_in]`, fp32 a and b -> `x @ torch.kron(a, b).T`, `[..., a_out · b_out]`."""
    rows = x.unflatten(-1, (a.shape[1], b.shape[1]))  # [..., a_in, b_in]
    return linear(linear(rows, b).mT, a).mT.flatten(-2)


def sum_of_products(a: Tensor, b: Tensor) -> Tensor:
    """a `[n, p, q]`, b `[n, r, s]` -> `Σᵢ torch.kron(aᵢ, bᵢ)`, `[p · r, q · s]`."""
    return torch.einsum("ipq,irs->prqs", a, b).flatten(2).flatten(0, 1)


def split(size: int, factor: int | None = None) -> tuple[int, int]:
    """Two whole numbers whose product is `size`, as LyCORIS and peft choose them.

    factor: the first of the two where it divides `size`, else an upper bound for it. None takes
    the two that are nearest to each other, with which a Kronecker product has fewest parameters.
    """
    if factor is not None and size % factor == 0:
        return factor, size // factor
    largest = isqrt(size) if factor is None else min(isqrt(size), factor)
    first = next(number for number in range(largest, 0, -1) if size % number == 0)
    return first, size // first
