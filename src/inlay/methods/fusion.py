"""AdapterFusion: y + Σₜ αₜ zₜ V, attention over adapters (Pfeiffer et al., EACL 2021, 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from inlay.blocks.bottleneck import linear
from inlay.blocks.init import normal
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, fraction, positive
from inlay.core.piece import HoldsBottleneck, OutputDelta, Piece
from inlay.core.readings import Readable, Reading
from inlay.core.site import Site, Where
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

    adapters: the adapters, all of one kind and at the same roles: `Pfeiffer`, `Houlsby` without
              its norms, or `Parallel`. They may be in different layers, as pruning leaves them;
              each place listens to those that are there.
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
        kinds = {(type(a), a.at.roles, a.at.stacks) for a in self.adapters}
        if len(kinds) > 1:
            raise SpecError(
                "Fusion: its adapters must be of one kind and at the same roles; train them with "
                "the same method and the same at="
            )
        if not self._everywhere and any(n < 0 for a in self.adapters for n in a.at.layers or ()):
            raise SpecError(
                "Fusion: a negative layer counts from the end; where the adapters are in different "
                "layers, write their numbers from 0 on"
            )
        if self.identity_weight < 0:
            raise SpecError("Fusion: identity_weight must be 0 or more; 0 leaves the penalty out")
        object.__setattr__(self, "at", self._places())

    @property
    def _everywhere(self) -> bool:
        """Whether all adapters are in the same layers."""
        return len({adapter.at.layers for adapter in self.adapters}) == 1

    def _places(self) -> Where:
        """Where any of the adapters is."""
        first = self.adapters[0].at
        if self._everywhere:
            return first
        chosen = [adapter.at.layers for adapter in self.adapters]
        layers = None if None in chosen else {n for numbers in chosen for n in numbers or ()}
        return Where(first.roles, None if layers is None else tuple(sorted(layers)), first.stacks)

    def _numbers_at(self, site: Site) -> list[int]:
        """The numbers of the adapters that are at a site."""
        layers = [adapter.at.layers for adapter in self.adapters]
        return [
            number
            for number, chosen in enumerate(layers)
            if self._everywhere or chosen is None or site.layer in chosen
        ]

    @override
    def build(self, site: Site, shared: Shared) -> Fused | None:
        numbers = self._numbers_at(site)
        if not numbers:
            return None
        pieces = [self.adapters[number].build(site, shared) for number in numbers]
        for piece in pieces:
            if not (isinstance(piece, OutputDelta) and isinstance(piece, HoldsBottleneck)):
                raise PortError(
                    f"Fusion attends over bottlenecks, and {type(self.adapters[0]).__name__} sets "
                    f"something else into {site.name}; give adapters without norms, such as "
                    'Pfeiffer() or Houlsby(at=("attn", "mlp"))'
                )
        start = shared.prepared
        for number, piece in zip(numbers, pieces, strict=True):
            prefix = f"{site.name}/{number}/"
            tensors = {n.removeprefix(prefix): t for n, t in start.items() if n.startswith(prefix)}
            if piece is not None and tensors:
                piece.load(tensors)
        names = tuple(self.names[number] for number in numbers)
        adapters = [piece for piece in pieces if isinstance(piece, OutputDelta)]
        return Fused(adapters, names, site, self)

    @override
    def penalty(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module]
    ) -> Tensor | None:
        terms = [
            piece.attention.deviation() for piece in pieces.values() if isinstance(piece, Fused)
        ]
        return self.identity_weight * torch.stack(terms).sum() if self.identity_weight else None

    @override
    def in_layers(self, layers: Sequence[int]) -> Self:
        return self.keeping(dict.fromkeys(self.names, layers))

    def keeping(self, layers: Mapping[str, Sequence[int] | None]) -> Self:
        """The fusion of these adapters alone, each in these of its layers; None for all of them.

        layers: counted from 0, by the name of the adapter. One without any is left out.
        """
        kept: dict[str, Method] = {}
        for name, adapter in zip(self.names, self.adapters, strict=True):
            chosen = layers.get(name, ())
            if chosen is None:
                kept[name] = adapter
                continue
            own = None if self._everywhere else adapter.at.layers
            numbers = [number for number in chosen if own is None or number in own]
            if numbers:
                kept[name] = adapter.in_layers(numbers)
        return replace(self, names=tuple(kept), adapters=tuple(kept.values()))


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


class Fused(Readable, OutputDelta):
    """The adapter of one place with all bottlenecks in it; they stay frozen.

    names: of the adapters that are there.
    """

    def __init__(
        self, adapters: list[OutputDelta], names: tuple[str, ...], site: Site, spec: Fusion
    ):
        super().__init__()
        self.names = names
        attention = AdapterAttention(site.d_out, spec)
        for adapter in adapters:
            adapter.requires_grad_(False)
        self.adapter = adapters[0]
        bottlenecks = [
            adapter.inner for adapter in adapters if isinstance(adapter, HoldsBottleneck)
        ]
        self.adapter.inner = FusedBottlenecks(bottlenecks, attention)

    def take(self, other: Fused) -> None:
        """Copy the trained part of another, and those of its adapters that are here too."""
        inner, source = self._inner, other._inner
        inner.attention.load_state_dict(source.attention.state_dict())
        for bottleneck, name in zip(inner.bottlenecks, self.names, strict=True):
            bottleneck.load_state_dict(source.bottlenecks[other.names.index(name)].state_dict())

    @override
    def readings(self) -> Sequence[Reading]:
        return [Reading("attention over adapters", "adapter", self.names, self.attention)]

    @property
    def attention(self) -> AdapterAttention:
        """The trained part."""
        return self._inner.attention

    @property
    def _inner(self) -> FusedBottlenecks:
        inner = self.adapter.inner
        assert isinstance(inner, FusedBottlenecks)
        return inner

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return self.adapter.delta(x, y, context)

    @override
    def scaled(self, factor: Tensor, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return self.adapter.scaled(factor, x, y, context)
