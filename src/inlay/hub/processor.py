"""What the processor of this machine can compute itself."""

from __future__ import annotations

from functools import cache
from time import perf_counter

import torch

EMULATION_FACTOR = 8
"""Matrix products that take so many times as long as in float32 are emulated."""


@cache
def is_emulated(dtype: torch.dtype) -> bool:
    """Whether this CPU has no matrix products in a type of 16 bits, so that torch emulates them.

    They then take some 40 times as long as in float32 (LOG.md). One small product is timed, once
    per process. False for any other type.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    return _product_seconds(dtype) > EMULATION_FACTOR * _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype) -> float:
    """The shortest time of twenty products of 128 × 128 matrices: one that nothing interrupted."""
    square = torch.ones(128, 128, dtype=dtype)
    square @ square
    times = []
    for _ in range(20):
        start = perf_counter()
        square @ square
        times.append(perf_counter() - start)
    return min(times)
