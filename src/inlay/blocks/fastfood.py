"""Fastfood: a random projection from a few numbers to many, without its matrix.

    P z = H G Π H B z / norm

B are random signs, Π is a random permutation, G are normal random numbers and H is the Hadamard
matrix, all of a size that is a power of two; z is filled up with zeros, and the result is cut
(Le, Sarlós and Smola, ICML 2013). Applied in n log n steps, it takes memory for n numbers where its
matrix would have d · n. Nothing of it is stored: a seed says all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

STEP = 64
"""The Hadamard transform multiplies by matrices of at most this size (a power of two)."""


class Fastfood(nn.Module):
    """z `[d]` -> `[size]`, a fixed random projection that nearly keeps the length of z.

    seed: any text. The same one gives the same projection on every machine.

    Its tensors are buffers, which no file holds.
    """

    signs: Tensor
    order: Tensor
    gains: Tensor

    def __init__(self, dimensions: int, size: int, seed: str):
        super().__init__()
        self.size = size
        length = 1 << (max(dimensions, size) - 1).bit_length()
        digest = hashlib.sha256(seed.encode()).digest()
        # Of numpy's generators this one never changes what it draws.
        random = np.random.RandomState(np.frombuffer(digest, np.uint32))
        signs = random.randint(0, 2, length, np.int8) * 2 - 1
        order = random.permutation(length).astype(np.int32)
        gains = random.standard_normal(length)
        norm = np.sqrt(size * np.square(gains).sum())
        for name, values in (
            ("signs", signs),  # [n]
            ("order", order),  # [n]
            ("gains", (gains / norm).astype(np.float32)),  # [n]
        ):
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Go to another device, but not to another dtype: that would be another projection."""
        gains = self.gains
        super()._apply(fn, recurse)
        self.gains = gains.to(self.signs.device)
        return self

    @override
    def forward(self, z: Tensor) -> Tensor:
        mixed = hadamard(F.pad(z, (0, len(self.signs) - len(z))) * self.signs)
        return hadamard(mixed.index_select(0, self.order) * self.gains)[: self.size]


def hadamard(x: Tensor) -> Tensor:
    """H x for x `[n]`, n a power of two; H H = n I."""
    left = len(x)
    while left > 1:
        step = min(STEP, left)
        x = (x.view(-1, step) @ _matrix(step).to(x)).T.reshape(
            -1
        )  # the last axis becomes the first
        left //= step
    return x


@cache
def _matrix(size: int) -> Tensor:
    """Sylvester's Hadamard matrix, `[size, size]`."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix
