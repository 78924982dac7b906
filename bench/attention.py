"""`python -m bench.attention`: attention of short texts, forward and backward, ours and torch's.

Median milliseconds with OMP_NUM_THREADS threads, in bf16, causal. "torch, fp32" computes on copies
of its inputs in fp32. adr/0011 is based on these numbers: measure again with a later torch.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from inlay.runtime import short_attention

SIZES = [
    (16, 16, 9, 3, 64),
    (16, 48, 9, 3, 64),
    (8, 128, 9, 3, 64),
    (8, 192, 9, 3, 64),
    (8, 128, 12, 12, 64),
    (4, 128, 32, 8, 128),
]
"""Rows, tokens, query heads, key-value heads, width of a head."""

ROUNDS = 30


def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's attention, in the precision of its inputs."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def theirs_in_fp32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's attention, on copies of its inputs in fp32."""
    return theirs(q.float(), k.float(), v.float()).to(q.dtype)


def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """inlay's attention of short texts."""
    return short_attention.attend(q, k, v, is_causal=True)


def milliseconds(run: Callable[[], object]) -> float:
    """The median time of a run, after two runs that do not count."""
    times = []
    for _ in range(ROUNDS + 2):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return 1000 * median(times[2:])


def measured(attend: Callable[..., Tensor], size: tuple[int, ...]) -> str:
    """The times of the forward and of the backward pass, as text."""
    rows, tokens, heads, kv_heads, width = size
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, tokens, count, width) for count in (heads, kv_heads, kv_heads, heads)]
    tensors = [torch.randn(s, generator=generator).bfloat16().transpose(1, 2) for s in shapes]
    inputs, gradient = [tensor.requires_grad_() for tensor in tensors[:3]], tensors[3]
    forward = milliseconds(lambda: attend(*inputs))
    both = milliseconds(lambda: torch.autograd.grad(attend(*inputs), inputs, gradient))
    return f"{forward:.1f} + {both - forward:.1f}"


def main() -> None:
    """The command line."""
    table = Table(
        "rows × tokens, heads (key-value heads) × width", "torch, bf16", "torch, fp32", "ours"
    )
    for size in SIZES:
        rows, tokens, heads, kv_heads, width = size
        cells = [measured(attend, size) for attend in (theirs, theirs_in_fp32, ours)]
        table.add_row(f"{rows} × {tokens}, {heads} ({kv_heads}) × {width}", *cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
