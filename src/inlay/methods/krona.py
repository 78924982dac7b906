"""KronA: y + s · (A ⊗ B) x (+ s_res · x) (Edalati et al., 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.init import kaiming
from inlay.blocks.kronecker import kronecker, split
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, positive, positive_int, require_site
from inlay.core.piece import Foldable, OutputDelta
from inlay.core.site import Site, Where


@dataclass(frozen=True, repr=False)
class KronA(Method):
    """A Kronecker product of two small matrices: high rank with few parameters.

    At projections it is added to the matrix and can be merged. At sub-layers it is the paper's
    KronA^B, a parallel module without a nonlinearity, and with `residual` KronA^B_res; x is then
    the residual stream before the sub-layer, before its norm in a pre-norm base, as for `Parallel`.

    scale:    s, a fixed factor.
    factor:   the rows and columns of A, where it divides those of the matrix, else an upper bound
              for them. None takes the split nearest to square, which has the fewest parameters.
    residual: at sub-layers, whether s_res · x is added too; s_res learns, from 0.
    at:       projections or sub-layers. Queries and values, the paper's choice; `at="mlp"` is
              KronA^B.
    """

    scale: float = 1.0
    factor: int | None = None
    residual: bool = False
    at: Where = Where(("attn.q", "attn.v", "cross.q?", "cross.v?"))

    identity: ClassVar[bool] = True
    paper: ClassVar[str] = "Edalati et al., 2022"
    sources: ClassVar[Mapping[str, str]] = {
        "scale": "chosen; the paper tunes it",
        "factor": "chosen, for the fewest parameters",
        "residual": "KronA^B; s_res starts at 0, chosen so that the base is what it was",
        "lr": "chosen, as for `LoRA`",
    }

    @override
    def check(self) -> None:
        positive(self, "scale")
        if self.factor is not None:
            positive_int(self, "factor")

    @override
    def build(self, site: Site, shared: Shared) -> KroneckerProduct:
        if self.residual:
            what = "sub-layers ('attn', 'cross', 'mlp') with residual=True"
            require_site(self, site, site.enter is not None, what)
        where = site.is_projection or site.enter is not None
        require_site(self, site, where, "projections and sub-layers ('attn', 'cross', 'mlp')")
        kind = FoldableKroneckerProduct if site.is_projection else KroneckerProduct
        return kind(site, self)


KronA.examples = (
    KronA(factor=2),
    KronA(scale=2.0, residual=True, at=Where(("attn", "mlp"))),
)


class KroneckerProduct(OutputDelta):
    """A and B, d_out = m·n, d_in = p·q. A starts at zero, so the base is what it was."""

    def __init__(self, site: Site, spec: KronA):
        super().__init__()
        m, n = split(site.d_out, spec.factor)
        p, q = split(site.d_in, spec.factor)
        self.a = nn.Parameter(torch.zeros(m, p))  # [m, p]
        self.b = kaiming(n, q)  # [n, q]
        self.residual = nn.Parameter(torch.zeros(1)) if spec.residual else None  # [1]
        self.scale = spec.scale

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        delta = kronecker(x, self.a * self.scale, self.b)
        return delta if self.residual is None else delta + self.residual.to(x.dtype) * x


class FoldableKroneckerProduct(Foldable, KroneckerProduct):
    """The same at a projection."""

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return w + self.scale * torch.kron(self.a.detach(), self.b.detach()), b
