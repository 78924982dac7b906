"""A narrow transformer block of our own, for networks that run beside a base.

    x ──┬─ norm ─ self-attention ─┬─ (norm ─ cross-attention) ─┬─ norm ─ feed-forward ─┬──> x
        └─────────── + ───────────┘ ────────── + ──────────────┘ ───────── + ──────────┘

It is the same on every base: what the base's own block is like (parallel sub-layers, experts,
windows, state spaces, relative positions) has no part in it. Queries and keys of self-attention are
rotated by their positions; the norms divide by the root mean square.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from inlay.blocks.bottleneck import activation, linear
from inlay.blocks.init import kaiming
from inlay.core.context import PassContext

BASE = 10_000.0
"""The longest wavelength of rotary positions, over 2π (Su et al., 2021)."""

EPS = 1e-6
"""What norms add to the mean square, as T5's do."""


@dataclass(frozen=True)
class AttentionShape:
    """H heads of queries and G of keys and values, each K wide, and whether projections are biased.

    source: the width of the states that keys and values are made of.
    """

    heads: int
    kv_heads: int
    head_dim: int
    source: int
    bias: bool = False


@dataclass(frozen=True)
class BlockShape:
    """A block of width D: its attentions, and M, the inner width of its feed-forward layer."""

    width: int
    attention: AttentionShape
    cross: AttentionShape | None
    inner: int
    gated: bool
    bias: bool = False


class Projection(nn.Module):
    """`W x`, or `W x + b`."""

    def __init__(self, d_in: int, d_out: int, bias: bool):
        super().__init__()
        self.weight = kaiming(d_out, d_in)  # [d_out, d_in]
        self.bias = nn.Parameter(torch.zeros(d_out)) if bias else None

    @override
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class RootMeanSquareNorm(nn.Module):
    """`g ⊙ x / √(mean of x²)`."""

    def __init__(self, width: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))  # [D]

    @override
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.gain.shape, self.gain.to(x.dtype), EPS)


class Sight:
    """Which positions see which in one pass, and where they are; the same in every block.

    context: of the pass. causal: a position sees only those before it. queries: T, how many
    positions the pass has.
    """

    def __init__(self, context: PassContext, causal: bool, queries: int):
        self.context = context
        self.causal = causal
        self.queries = queries
        self._masks: dict[int, Tensor | None] = {}
        self._rotations: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    @property
    def from_the_start(self) -> bool:
        """Whether causality alone says what is seen, so that a kernel can do without a mask."""
        return self.causal and self.context.mask is None

    def mask(self, keys: Tensor) -> Tensor | None:
        """keys `[B, G, S, K]`, cached ones first -> `[B, 1, T, S]`, true where one sees another.

        Every position sees itself, padding too, so that no row is empty. None where all see all.
        """
        length = keys.shape[2]
        if length not in self._masks:
            self._masks[length] = self._mask(length, keys.device)
        return self._masks[length]

    def _mask(self, length: int, device: torch.device) -> Tensor | None:
        texts = self.context.mask
        if texts is None and (not self.causal or self.queries == 1):
            return None
        before = length - self.queries
        whole = torch.ones(self.queries, length, dtype=torch.bool, device=device)
        seen = (whole.tril(before) if self.causal else whole)[None, None]
        if texts is None:
            return seen
        itself = whole.tril(before) & whole.triu(before)
        return seen & texts[:, None, None, -length:].bool().to(device) | itself

    def rotations(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """keys `[B, G, S, K]` -> cosines and sines of their positions, `[B or 1, 1, S, K / 2]`."""
        length, width = keys.shape[2], keys.shape[3]
        if (length, width) not in self._rotations:
            texts = self.context.mask
            if texts is None:
                positions = torch.arange(length, device=keys.device)[None]
            else:
                positions = (texts[:, -length:].long().cumsum(-1) - 1).clamp(min=0).to(keys.device)
            half = width // 2
            steps = torch.arange(half, device=keys.device, dtype=torch.float32) / max(1, half)
            angles = positions[:, None, :, None] * BASE**-steps
            self._rotations[length, width] = angles.cos(), angles.sin()
        return self._rotations[length, width]


def rotated(x: Tensor, rotations: tuple[Tensor, Tensor]) -> Tensor:
    """x `[B, H, T, K]` turned by the positions of its last T; an odd last column stays."""
    cosines, sines = (part[:, :, -x.shape[2] :].to(x.dtype) for part in rotations)
    half = cosines.shape[-1]
    first, second, rest = x.split((half, half, x.shape[-1] - 2 * half), -1)
    turned = first * cosines - second * sines, second * cosines + first * sines
    return torch.cat((*turned, rest), -1)


class SideAttention(nn.Module):
    """Attention with H heads of queries and G of keys and values, scaled by 1/√K."""

    def __init__(self, width: int, shape: AttentionShape):
        super().__init__()
        self.shape = shape
        inner, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q = Projection(width, inner, shape.bias)
        self.k = Projection(shape.source, keys, shape.bias)
        self.v = Projection(shape.source, keys, shape.bias)
        self.o = Projection(inner, width, shape.bias)

    def queries(self, x: Tensor) -> Tensor:
        """x `[B, T, D]` -> `[B, H, T, K]`."""
        return self.q(x).unflatten(-1, (self.shape.heads, -1)).transpose(1, 2)

    def keys_and_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """source `[B, S, D']` -> each `[B, G, S, K]`."""
        heads = (self.shape.kv_heads, -1)
        k, v = (p(source).unflatten(-1, heads).transpose(1, 2) for p in (self.k, self.v))
        return k, v

    @override
    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False
    ) -> Tensor:
        """q `[B, H, T, K]`, k and v `[B, G, S, K]`, mask `[B, 1, T, S]` -> `[B, T, D]`."""
        grouped = self.shape.kv_heads != self.shape.heads
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )
        return self.o(attended.transpose(1, 2).flatten(2))


class SideBlock(nn.Module):
    """The block that the file's docstring draws."""

    def __init__(self, shape: BlockShape, act: str):
        super().__init__()
        width, cross = shape.width, shape.cross
        self.norm_attention = RootMeanSquareNorm(width)
        self.attention = SideAttention(width, shape.attention)
        self.norm_cross = None if cross is None else RootMeanSquareNorm(width)
        self.cross = None if cross is None else SideAttention(width, cross)
        self.norm_mlp = RootMeanSquareNorm(width)
        self.up = Projection(width, shape.inner, shape.bias)
        self.gate = Projection(width, shape.inner, shape.bias) if shape.gated else None
        self.down = Projection(shape.inner, width, shape.bias)
        self.act = activation(act)

    @override
    def forward(
        self, x: Tensor, source: Tensor | None, sight: Sight, owner: object, number: int
    ) -> Tensor:
        """x `[B, T, D]`, source `[B, S, D']`, what cross-attention reads -> `[B, T, D]`.

        owner, number: under which keys and values of earlier positions are kept in the cache.
        """
        x = x + self._attend(self.norm_attention(x), sight, owner, number)
        if self.cross is not None and self.norm_cross is not None:
            assert source is not None
            mask = sight.context.source_mask
            seen = None if mask is None else mask[:, None, None].bool().to(x.device)
            k, v = self.cross.keys_and_values(source)
            x = x + self.cross(self.cross.queries(self.norm_cross(x)), k, v, seen)
        return x + self._feed_forward(self.norm_mlp(x))

    def _attend(self, x: Tensor, sight: Sight, owner: object, number: int) -> Tensor:
        attention = self.attention
        k, v = attention.keys_and_values(x)
        k, v = sight.context.append_to_cache(owner, k, v, number)
        rotations = sight.rotations(k)
        q, k = rotated(attention.queries(x), rotations), rotated(k, rotations)
        if sight.from_the_start and q.shape[2] == k.shape[2]:
            return attention(q, k, v, None, causal=True)
        return attention(q, k, v, sight.mask(k))

    def _feed_forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.act(self.up(x)))
        return self.down(self.act(self.gate(x)) * self.up(x))
