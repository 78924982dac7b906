"""Small methods for tests, which together use every interface of a method and a piece once.

They are in no list of methods except inside `registered()`, which reading their files needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

import inlay
from inlay.core.context import PassContext
from inlay.core.method import METHODS, Method, ParameterGroup, Preset, Shared, Spec, require_site
from inlay.core.piece import ExtraKV, OutputDelta, Piece, Reference, SideNetwork
from inlay.core.site import Site, Where


@contextmanager
def registered() -> Iterator[None]:
    """Inside, the methods of this file can be found by their names."""
    METHODS.update({kind.__name__: kind for kind in KINDS})
    try:
        yield
    finally:
        for kind in KINDS:
            METHODS.pop(kind.__name__, None)


# A module that pieces of all sites and stacks share, with a part that stays frozen.


@dataclass(frozen=True, repr=False)
class SharedBases(Method, listed=False):
    """y + b ⊙ B (d ⊙ A x): A frozen and B trained, shared by all sites."""

    rank: int = 3
    at: Where = Where(("attn.q", "attn.o"))

    identity: ClassVar[bool] = True

    @override
    def build(self, site: Site, shared: Shared) -> Scaled:
        width = max(max(s.d_in, s.d_out) for s in shared.sites)
        return Scaled(
            shared.module("bases", lambda: Bases(width, self.rank)), site.d_out, self.rank
        )


class Bases(nn.Module):
    def __init__(self, width: int, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, width) / width**0.5, requires_grad=False)
        self.up = nn.Parameter(torch.randn(width, rank) / rank**0.5)


class Scaled(OutputDelta):
    def __init__(self, bases: Bases, d_out: int, rank: int):
        super().__init__()
        self._bases = Reference(bases)
        self.inner = nn.Parameter(torch.ones(rank))
        self.outer = nn.Parameter(torch.zeros(d_out))

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        bases = self._bases.module
        hidden = F.linear(x, bases.down[:, : x.shape[-1]]) * self.inner
        return F.linear(hidden, bases.up[: y.shape[-1]]) * self.outer


# A piece that draws, and several passes that are compared.


@dataclass(frozen=True, repr=False)
class Experts(Method, listed=False):
    """One of n low-rank experts in each training pass, their mean otherwise."""

    count: int = 3
    at: Where = Where(("mlp",))

    passes: ClassVar[int] = 2

    @override
    def build(self, site: Site, shared: Shared) -> Drawn:
        return Drawn(site, self.count)

    @override
    def consistency(self, divergence: Tensor) -> Tensor:
        return 0.5 * divergence


class Drawn(OutputDelta):
    draws: ClassVar[bool] = True

    def __init__(self, site: Site, count: int):
        super().__init__()
        self.site = site.name
        self.down = nn.Parameter(torch.randn(count, 2, site.d_in) * 0.1)
        self.up = nn.Parameter(torch.zeros(count, site.d_out, 2))

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        if self.training:
            generator = context.generator("expert", self.site)
            number = int(torch.randint(len(self.down), (1,), generator=generator))
            return F.linear(F.linear(x, self.down[number]), self.up[number])
        parts = zip(self.down, self.up, strict=True)
        return torch.stack([F.linear(F.linear(x, down), up) for down, up in parts]).mean(0)


# A piece that reads the padding mask, and one that also keeps its past in the cache.


@dataclass(frozen=True, repr=False)
class TextMean(Method, listed=False):
    """y + W · the mean of x over the text up to each position; over all of it in an encoder."""

    at: Where = Where(("mlp", "cross.k?"))

    @override
    def build(self, site: Site, shared: Shared) -> Mean:
        # the keys of cross-attention are made of the whole text of the encoder
        return Mean(site, causal=site.stack == "decoder" and site.role == "mlp")


class Mean(OutputDelta):
    relates_positions: ClassVar[bool] = True

    def __init__(self, site: Site, causal: bool):
        super().__init__()
        self.causal = causal
        self.w = nn.Parameter(torch.randn(site.d_out, site.d_in) * 0.1)

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        batch, length = x.shape[:2]
        text = x.new_ones(batch, length) if context.mask is None else context.mask.to(x.dtype)
        if not self.causal:
            weights = text[:, -length:, None]
            mean = (x * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)
            return F.linear(mean, self.w).expand_as(y)
        past = context.append_to_cache(self, x[:, None], x[:, None, :, :0])[0][:, 0]
        if context.mask is None:
            text = x.new_ones(batch, past.shape[1])
        weights = text[:, -past.shape[1] :, None]
        mean = (past * weights).cumsum(1) / weights.cumsum(1).clamp(min=1)
        return F.linear(mean[:, -length:], self.w)


# Keys that depend on what the attention reads.


@dataclass(frozen=True, repr=False)
class FirstTokenKV(Method, listed=False):
    """Extra keys and values made of the first position of each row."""

    length: int = 2
    at: Where = Where(("attn.kv",))

    @override
    def build(self, site: Site, shared: Shared) -> FirstToken:
        require_site(self, site, site.heads > 0, "attention")
        return FirstToken(site, self.length)


class FirstToken(ExtraKV):
    relates_positions: ClassVar[bool] = True

    def __init__(self, site: Site, length: int):
        super().__init__()
        self.length, self.shape = length, (2, site.heads, length, site.head_dim)
        self.w = nn.Parameter(torch.randn(2 * site.heads * length * site.head_dim, site.d_in) * 0.1)

    @override
    def forward(self, x: Tensor, context: PassContext) -> tuple[Tensor, Tensor]:
        if context.continues:
            empty = x.new_zeros(len(x), self.shape[1], 0, self.shape[3])
            return context.append_to_cache(self, empty, empty)
        first = x.new_zeros(len(x), dtype=torch.long)
        if context.mask is not None:
            first = (context.mask.cumsum(-1) == 0).sum(-1).clamp(max=x.shape[1] - 1)
        begin = x[torch.arange(len(x), device=x.device), first]
        k, v = F.linear(begin, self.w).view(len(x), *self.shape).unbind(1)
        return context.append_to_cache(self, k, v)


# A piece inside a piece.


@dataclass(frozen=True, repr=False)
class Gated(Method, listed=False):
    """Another method, times a trained gate a site."""

    inner: Method = field(default_factory=lambda: inlay.LoRA(rank=2))
    start: float = 0.5
    at: Where = Where(("block?",))

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", self.inner.at)
        super().__post_init__()

    @override
    def build(self, site: Site, shared: Shared) -> Piece | None:
        piece = self.inner.build(site, shared)
        if isinstance(piece, ExtraKV):
            return GatedKV(piece, self.start)
        assert piece is None or isinstance(piece, OutputDelta)
        return None if piece is None else GatedDelta(piece, self.start)

    @override
    def finish(self, pieces: Mapping[str, Piece], shared: Shared) -> None:
        inner = {name: piece.inner for name, piece in pieces.items()}
        self.inner.finish(inner, shared)  # type: ignore[arg-type]

    @override
    def exported(self) -> Method:
        return dataclasses.replace(self, inner=self.inner.exported())


class GatedDelta(OutputDelta):
    def __init__(self, inner: OutputDelta, start: float):
        super().__init__()
        self.inner = inner
        self.gate = nn.Parameter(torch.tensor(start))

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return self.gate.to(y.dtype) * self.inner.delta(x, y, context)


class GatedKV(ExtraKV):
    def __init__(self, inner: ExtraKV, start: float):
        super().__init__()
        self.inner, self.length, self.shift = inner, inner.length, inner.shift
        self.gate = nn.Parameter(torch.tensor(start))

    @override
    def forward(self, x: Tensor, context: PassContext) -> tuple[Tensor, Tensor]:
        k, v = self.inner(x, context)
        return k, v * self.gate.to(v.dtype)


# A penalty, a schedule, a preparation, parameter groups, indices and masks.


@dataclass(frozen=True, repr=False)
class Scheduled(Method, listed=False):
    """y + U (mask ⊙ A x[index]), of which after_step masks the component with the least gradient."""

    rank: int = 3
    weight: float = 0.1
    at: Where = Where(("mlp.up", "mlp.down"))

    lr: ClassVar[float] = 1e-3

    @override
    def prepare(self, base: Any, sites: Sequence[Site], batches: Any) -> Mapping[str, Tensor]:
        return {site.name: torch.arange(site.d_in).flip(0) for site in sites}

    @override
    def build(self, site: Site, shared: Shared) -> Masked:
        index = shared.prepared.get(site.name, torch.arange(site.d_in))
        return Masked(site, self.rank, index)

    @override
    def penalty(self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module]) -> Tensor:
        terms = [p.square().sum() for piece in pieces.values() for p in piece.parameters()]
        return self.weight * torch.stack(terms).sum()

    @override
    def after_step(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module], progress: float
    ) -> None:
        for piece in pieces.values():
            assert isinstance(piece, Masked)
            assert piece.a.grad is not None, "the gradients are gone"
            piece.score.mul_(0.9).add_(piece.a.grad.norm(dim=1))
            if progress >= 0.5:
                piece.mask.fill_(True)
                piece.mask[piece.score.argmin()] = False

    @override
    def parameter_groups(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module], learning_rate: float
    ) -> Sequence[ParameterGroup]:
        down = tuple(piece.a for piece in pieces.values() if isinstance(piece, Masked))
        up = tuple(piece.u for piece in pieces.values() if isinstance(piece, Masked))
        return [
            ParameterGroup(down, learning_rate),
            ParameterGroup(up, 16 * learning_rate, weight_decay=0.0),
        ]


class Masked(OutputDelta):
    def __init__(self, site: Site, rank: int, index: Tensor):
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, site.d_in) * 0.1)
        self.u = nn.Parameter(torch.randn(site.d_out, rank) * 0.1)
        self.register_buffer("index", index.clone())
        self.register_buffer("mask", torch.ones(rank, dtype=torch.bool))
        self.register_buffer("score", torch.zeros(rank))
        self.index: Tensor
        self.mask: Tensor
        self.score: Tensor

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return F.linear(F.linear(x[..., self.index], self.a) * self.mask, self.u)


# A size that training decides.


@dataclass(frozen=True, repr=False)
class Sized(Method, listed=False):
    """LoRA whose rank at each site the file says."""

    rank: int = 4
    at: Where = Where(("attn.q", "attn.o"))

    @override
    def build(self, site: Site, shared: Shared) -> LowRank:
        return LowRank(site, self.rank)


class LowRank(OutputDelta):
    def __init__(self, site: Site, rank: int):
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, site.d_in) * 0.1)
        self.b = nn.Parameter(torch.randn(site.d_out, rank) * 0.1)

    def cut(self, rank: int) -> None:
        """Keep the first components."""
        self.a = nn.Parameter(self.a.detach()[:rank].clone())
        self.b = nn.Parameter(self.b.detach()[:, :rank].clone())

    @override
    def resize(self, shapes: Mapping[str, torch.Size]) -> None:
        if "a" in shapes:
            self.cut(shapes["a"][0])

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return F.linear(F.linear(x, self.a), self.b)


# Side networks.


@dataclass(frozen=True, repr=False)
class SideSum(Method, listed=False):
    """A sum of all blocks' outputs with trained weights, times a matrix."""

    at: Where = Where(("final?", "final.target?", "block"), stacks=("decoder",))

    @override
    def build(self, site: Site, shared: Shared) -> Summed | None:
        if site.role == "block":
            return None
        depth = sum(other.role == "block" for other in shared.sites)
        return Summed(site.d_out, depth)


class Summed(SideNetwork):
    def __init__(self, width: int, depth: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(depth + 1))
        self.w = nn.Parameter(torch.eye(width))

    @override
    def forward(self, states: tuple[Tensor, ...], last: Tensor, context: PassContext) -> Tensor:
        assert len(states) == len(self.weights)
        weights = self.weights.softmax(0)
        mixed = sum(w * state for w, state in zip(weights, states, strict=True))
        assert isinstance(mixed, Tensor)
        return F.linear(mixed, self.w)


@dataclass(frozen=True, repr=False)
class SideAttention(Method, listed=False):
    """Attention over the last block's outputs, with keys and values of its own in the cache."""

    width: int = 8
    at: Where = Where(("final?", "final.target?"), stacks=("decoder",))

    @override
    def build(self, site: Site, shared: Shared) -> Attending:
        return Attending(site.d_out, self.width)


class Attending(SideNetwork):
    def __init__(self, d: int, width: int):
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(width, d) * 0.3) for _ in range(3))
        self.o = nn.Parameter(torch.randn(d, width) * 0.3)

    @override
    def forward(self, states: tuple[Tensor, ...], last: Tensor, context: PassContext) -> Tensor:
        x = states[-1]
        q, k, v = (F.linear(x, w)[:, None] for w in (self.q, self.k, self.v))
        k, v = context.append_to_cache(self, k, v)
        queries, keys = x.shape[1], k.shape[2]
        visible = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]
        if context.mask is not None:
            visible = visible & context.mask[:, None, None, -keys:].bool()
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)[:, 0].nan_to_num()
        return x + F.linear(attended, self.o)


# A preset.


@dataclass(frozen=True, repr=False)
class Halves(Preset, listed=False):
    """LoRA in the first half of the blocks of each stack, and biases in all norms there are."""

    rank: int = 2

    @override
    def expand(self, sites: Sequence[Site]) -> Spec:
        depth = max(site.layer for site in sites if site.layer is not None) + 1
        lora = inlay.LoRA(
            rank=self.rank, at=Where(("attn.q",), layers=tuple(range((depth + 1) // 2)))
        )
        return lora + inlay.BitFit(at=Where(("norm.attn?", "norm.mlp?", "attn.o")), create=True)


KINDS: tuple[type[Method], ...] = (
    SharedBases,
    Experts,
    TextMean,
    FirstTokenKV,
    Gated,
    Scheduled,
    Sized,
    SideSum,
    SideAttention,
    Halves,
)

SPECS: tuple[Spec, ...] = (
    SharedBases(),
    Experts(),
    TextMean(),
    FirstTokenKV(),
    FirstTokenKV() + inlay.Prefix(length=3, mlp=None),
    Gated(),
    Gated(inner=inlay.Prefix(length=2, mlp=4)),
    Gated(inner=Experts()),
    Scheduled(),
    Sized(),
    SideSum(),
    SideAttention(),
    TextMean() + inlay.Prompt(length=2),
    Halves(),
)
