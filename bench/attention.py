"""`python -m bench.attention`: attention of short texts, forward and back, ours and torch's.

Milliseconds on as many threads as OMP_NUM_THREADS says, medians, in bf16 and causal. "torch, fp32"
has copies of its inputs in fp32. What adr/0011 rests on: to be asked again of a later torch.
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
"""Rows, tokens, query heads, heads of keys, width of a head."""

ROUNDS = 30


def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's, in the precision of its inputs."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def single(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's, of copies in fp32."""
    return theirs(q.float(), k.float(), v.float()).to(q.dtype)


def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """inlay's."""
    return short_attention.attend(q, k, v, is_causal=True)


def milliseconds(run: Callable[[], object]) -> float:
    """The median of some runs, after two that do not count."""
    times = []
    for _ in range(ROUNDS + 2):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return 1000 * median(times[2:])


def measured(kind: Callable[..., Tensor], size: tuple[int, ...]) -> str:
    """Forward, and back."""
    rows, tokens, heads, kept, width = size
    draw = torch.Generator().manual_seed(0)
    shapes = [(rows, tokens, h, width) for h in (heads, kept, kept, heads)]
    made = [torch.randn(s, generator=draw).bfloat16().transpose(1, 2) for s in shapes]
    inputs, up = [t.requires_grad_() for t in made[:3]], made[3]
    forward = milliseconds(lambda: kind(*inputs))
    both = milliseconds(lambda: torch.autograd.grad(kind(*inputs), inputs, up))
    return f"{forward:.1f} + {both - forward:.1f}"


def main() -> None:
    """The command line."""
    table = Table("rows × tokens, heads (kept) × width", "torch, bf16", "torch, fp32", "ours")
    for size in SIZES:
        rows, tokens, heads, kept, width = size
        cells = [measured(kind, size) for kind in (theirs, single, ours)]
        table.add_row(f"{rows} × {tokens}, {heads} ({kept}) × {width}", *cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
