"""Compacter: y + U f(D y), U and D sums of Kronecker products (Mahabadi et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.bottleneck import activation, linear
from inlay.blocks.init import glorot, normal
from inlay.blocks.kronecker import sum_of_products
from inlay.blocks.norm import NormTwin
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, positive, positive_int, require_site
from inlay.core.piece import OutputDelta, Reference
from inlay.core.site import Site, Where
from inlay.errors import SpecError


@dataclass(frozen=True, repr=False)
class Compacter(Method):
    """A Houlsby adapter whose matrices are `Σᵢ Aᵢ ⊗ Bᵢ`: few parameters, high rank (section 3).

    The small "slow" matrices Aᵢ are one tensor for all places and both stacks; the "fast" Bᵢ are
    a place's own, of low rank. `at=("mlp",)` with the norms is Compacter++; `rank=None,
    share_slow=False` are the paper's PHM adapters.

    bottleneck: M, the inner width; None means a 32nd of the hidden width. A multiple of `terms`.
    terms:      n, how many products are summed, and the side of the slow matrices; it divides the
                hidden width.
    rank:       the rank of the fast matrices; None for whole ones.
    share_slow: whether all places share the slow matrices.
    std:        standard deviation of the slow matrices at the start.
    act:        the nonlinearity.
    at:         sub-layers get an adapter, norms a twin of their gain and bias.
    """

    bottleneck: int | None = None
    terms: int = 4
    rank: int | None = 1
    share_slow: bool = True
    std: float = 0.01
    act: str = "gelu"
    at: Where = Where(
        ("attn", "mlp", "norm.attn?", "norm.cross?", "norm.mlp?", "norm.embed?", "norm.final?")
    )

    lr: ClassVar[float] = 3e-3
    size: ClassVar[str] = "bottleneck"
    paper: ClassVar[str] = "Mahabadi et al., NeurIPS 2021"
    sources: ClassVar[Mapping[str, str]] = {
        "bottleneck": "the authors' code: a 32nd of the hidden width",
        "terms": "the authors' code; they also tried 8 and 12",
        "rank": "the authors' code",
        "std": "the authors' code",
        "lr": "the authors' code",
    }

    @override
    def check(self) -> None:
        positive_int(self, "terms", *(n for n in ("bottleneck", "rank") if getattr(self, n)))
        positive(self, "std")
        activation(self.act)

    @override
    def with_size(self, steps: int) -> Compacter:
        """A bottleneck that `terms` divides."""
        return replace(self, bottleneck=steps * self.terms)

    @override
    def build(self, site: Site, shared: Shared) -> OutputDelta:
        if site.is_norm:
            return NormTwin(site)
        require_site(
            self, site, site.enter is not None, "sub-layers ('attn', 'cross', 'mlp') and norms"
        )
        width = site.d_out
        inner = self.bottleneck if self.bottleneck is not None else width // 32
        for name, size in (("the hidden width", width), ("bottleneck", inner)):
            if size < 1 or size % self.terms:
                raise SpecError(
                    f"Compacter: terms={self.terms} must divide {name}, which is {size}; "
                    f"give a bottleneck and terms that do, such as bottleneck={4 * self.terms}"
                )

        def projection(d_in: int, d_out: int, name: str) -> KroneckerProjection:
            def slow() -> SlowMatrices:
                return SlowMatrices(self.terms, self.std)

            key = "slow" if self.share_slow else f"slow.{site.name}.{name}"
            return KroneckerProjection(d_in, d_out, self, shared.module(key, slow))

        return CompactAdapter(
            projection(width, inner, "down"), projection(inner, width, "up"), self.act
        )


Compacter.examples = (
    Compacter(bottleneck=4, terms=2, std=0.5),
    Compacter(bottleneck=8, rank=None, share_slow=False, std=0.5, at=Where(("mlp",))),
)


class SlowMatrices(nn.Module):
    """The small matrices that projections share, `[n, n, n]`."""

    def __init__(self, terms: int, std: float):
        super().__init__()
        self.a = normal(terms, terms, terms, std=std)


class KroneckerProjection(nn.Module):
    """`x W + b` with `W = Σᵢ Aᵢ ⊗ (sᵢ tᵢ)`, or `Σᵢ Aᵢ ⊗ Bᵢ` where the fast matrices are whole."""

    def __init__(self, d_in: int, d_out: int, spec: Compacter, slow: SlowMatrices):
        super().__init__()
        n, rank = spec.terms, spec.rank
        self._slow = Reference(slow)
        self.s = None if rank is None else glorot(n, d_in // n, rank)  # [n, d_in / n, R]
        self.t = None if rank is None else glorot(n, rank, d_out // n)  # [n, R, d_out / n]
        self.b = glorot(n, d_in // n, d_out // n) if rank is None else None
        self.bias = nn.Parameter(torch.zeros(d_out))

    def weight(self) -> Tensor:
        """W, `[d_in, d_out]`."""
        if self.b is not None:
            return sum_of_products(self._slow.module.a, self.b)
        assert self.s is not None and self.t is not None
        return sum_of_products(self._slow.module.a, self.s @ self.t)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """x `[..., d_in]` -> `[..., d_out]`."""
        return linear(x, self.weight().mT, self.bias)


class CompactAdapter(OutputDelta):
    """The bottleneck of two Kronecker projections, reading the sub-layer's output."""

    reads_output: ClassVar[bool] = True

    def __init__(self, down: KroneckerProjection, up: KroneckerProjection, act: str):
        super().__init__()
        self.down, self.up, self.act = down, up, activation(act)

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return self.up(self.act(self.down(y)))
