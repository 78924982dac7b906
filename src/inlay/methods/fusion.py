"""AdapterFusion: y + Σₜ αₜ zₜ V, attention over adapters (Pfeiffer et al., EACL 2021, 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from inlay.blocks.bottleneck import linear
from inlay.blocks.init import normal
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, fraction, positive
from inlay.core.piece import HoldsBottleneck, OutputDelta, Piece
from inlay.core.site import Site
from inlay.errors import PortError, SpecError
from inlay.methods.pfeiffer import Pfeiffer

NOISE = 1e-6
"""What stands beside the diagonal of the value matrix at the start, as in the authors' code."""


@dataclass(frozen=True, repr=False)
class Fusion(Method):
    """Learns, for each layer and position, which of several trained adapters to listen to.

    First adapters are trained, each on its own task; then base and adapters are frozen, and
    attention over what they add is trained on the target task (section 3.2). The query is what
    the adapters read; keys and values are what they would add. `inlay.fuse(model, files)` sets
    one up from files of adapters; its file holds copies of them and needs no other.

    adapters: the adapters, all of one kind and in the same places: `Pfeiffer`, `Houlsby` without
              its norms, or `Parallel`.
    names:    what each is called, in this order.
    std:      standard deviation of the query and key matrices at the start.
    dropout:  fraction of the attention scores that is dropped, in training.
    identity_weight: weight of the penalty ‖I − V‖² of every layer, which keeps V near what the
              adapters say.
    at:       follows from the adapters: their places.
    """

    adapters: tuple[Method, ...] = (Pfeiffer(), Pfeiffer())
    names: tuple[str, ...] = ("first", "second")
    std: float = 0.02
    dropout: float = 0.0
    identity_weight: float = 0.01

    lr: ClassVar[float] = 5e-5
    paper: ClassVar[str] = "Pfeiffer et al., EACL 2021"
    sources: ClassVar[Mapping[str, str]] = {
        "std": "the authors' code",
        "dropout": "our choice",
        "identity_weight": "the authors' code",
        "lr": "the adapters library's example",
    }

    @override
    def check(self) -> None:
        positive(self, "std")
        fraction(self, "dropout")
        object.__setattr__(self, "adapters", tuple(self.adapters))
        object.__setattr__(self, "names", tuple(self.names))
        if not self.adapters or len(self.names) != len(self.adapters):
            raise SpecError(
                f"Fusion: {len(self.adapters)} adapters need as many names, not {self.names!r:.80}"
            )
        if len(set(self.names)) < len(self.names):
            raise SpecError(f"Fusion: each adapter needs a name of its own, not {self.names!r:.80}")
        kinds = {(type(adapter), adapter.at) for adapter in self.adapters}
        if len(kinds) > 1:
            raise SpecError(
                "Fusion: its adapters must be of one kind and in the same places; train them with "
                "the same method and the same at="
            )
        if self.identity_weight < 0:
            raise SpecError("Fusion: identity_weight must be 0 or more; 0 leaves the penalty out")
        object.__setattr__(self, "at", self.adapters[0].at)

    @override
    def build(self, site: Site, shared: Shared) -> Fused | None:
        pieces = [adapter.build(site, shared) for adapter in self.adapters]
        for piece in pieces:
            if not (isinstance(piece, OutputDelta) and isinstance(piece, HoldsBottleneck)):
                raise PortError(
                    f"Fusion attends over bottlenecks, and {type(self.adapters[0]).__name__} sets "
                    f"something else into {site.name}; give adapters without norms, such as "
                    'Pfeiffer() or Houlsby(at=("attn", "mlp"))'
                )
        start = shared.prepared
        for number, piece in enumerate(pieces):
            prefix = f"{site.name}/{number}/"
            tensors = {n.removeprefix(prefix): t for n, t in start.items() if n.startswith(prefix)}
            if piece is not None and tensors:
                piece.load(tensors)
        return Fused([piece for piece in pieces if isinstance(piece, OutputDelta)], site, self)

    @override
    def penalty(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module]
    ) -> Tensor | None:
        terms = [
            piece.attention.deviation() for piece in pieces.values() if isinstance(piece, Fused)
        ]
        return self.identity_weight * torch.stack(terms).sum() if self.identity_weight else None

    def without(self, names: set[str]) -> Fusion:
        """The fusion of the adapters that are not called so."""
        kept = [
            pair for pair in zip(self.names, self.adapters, strict=True) if pair[0] not in names
        ]
        return replace(self, names=tuple(n for n, _ in kept), adapters=tuple(a for _, a in kept))


Fusion.examples = (
    Fusion(adapters=(Pfeiffer(bottleneck=3, std=0.3), Pfeiffer(bottleneck=4, std=0.3))),
)


class AdapterAttention(nn.Module):
    """Which adapter to listen to: `α = softmax over t of (u Q) · (zₜ K)`, without a scale."""

    def __init__(self, width: int, spec: Fusion):
        super().__init__()
        self.query = normal(width, width, std=spec.std)
        self.query_bias = nn.Parameter(torch.zeros(width))
        self.key = normal(width, width, std=spec.std)
        self.key_bias = nn.Parameter(torch.zeros(width))
        noise = torch.full((width, width), NOISE)
        self.value = nn.Parameter(noise.fill_diagonal_(1.0))
        self.dropout = spec.dropout

    @override
    def forward(self, u: Tensor, outputs: Tensor) -> Tensor:
        """u `[..., D]`, what the adapters read; outputs `[..., N, D]` -> α, `[..., N]`."""
        query = linear(u, self.query, self.query_bias)
        scores = (linear(outputs, self.key, self.key_bias) @ query[..., None])[..., 0]
        return F.dropout(scores, self.dropout, self.training).softmax(-1)

    def deviation(self) -> Tensor:
        """‖I − V‖²."""
        one = torch.eye(len(self.value), device=self.value.device)
        return (one - self.value).square().sum()


class FusedBottlenecks(nn.Module):
    """Stands where an adapter has its bottleneck: the attention's mean of several."""

    def __init__(self, bottlenecks: list[nn.Module], attention: AdapterAttention):
        super().__init__()
        self.bottlenecks = nn.ModuleList(bottlenecks)
        self.attention = attention

    @override
    def forward(self, x: Tensor) -> Tensor:
        """x `[..., D]` -> `[..., D]`."""
        outputs = torch.stack([bottleneck(x) for bottleneck in self.bottlenecks], -2)
        weights = self.attention(x, outputs)  # [..., N]
        return linear((weights[..., None] * outputs).sum(-2), self.attention.value.mT)


class Fused(OutputDelta):
    """The adapter of one place with all bottlenecks in it; they stay frozen."""

    def __init__(self, adapters: list[OutputDelta], site: Site, spec: Fusion):
        super().__init__()
        attention = AdapterAttention(site.d_out, spec)
        for adapter in adapters:
            adapter.requires_grad_(False)
        self.adapter = adapters[0]
        bottlenecks = [
            adapter.inner for adapter in adapters if isinstance(adapter, HoldsBottleneck)
        ]
        self.adapter.inner = FusedBottlenecks(bottlenecks, attention)

    def take(self, other: Fused, numbers: Sequence[int]) -> None:
        """Copy the trained part of another, and its adapters with these numbers."""
        inner, source = self.adapter.inner, other.adapter.inner
        assert isinstance(inner, FusedBottlenecks) and isinstance(source, FusedBottlenecks)
        inner.attention.load_state_dict(source.attention.state_dict())
        for bottleneck, number in zip(inner.bottlenecks, numbers, strict=True):
            bottleneck.load_state_dict(source.bottlenecks[number].state_dict())

    @property
    def attention(self) -> AdapterAttention:
        """The trained part."""
        inner = self.adapter.inner
        assert isinstance(inner, FusedBottlenecks)
        return inner.attention

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return self.adapter.delta(x, y, context)

    @override
    def scaled(self, factor: Tensor, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return self.adapter.scaled(factor, x, y, context)
