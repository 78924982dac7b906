"""LoKr: y + (α/r) · (W₁ ⊗ W₂) x, W₂ = B A where large (Yeh et al., ICLR 2024, LyCORIS)."""

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
class LoKr(Method):
    """A Kronecker product of two matrices, the second of them in low-rank factors.

    W₂ is factored where R is less than half of its longer side, as in LyCORIS and peft; smaller
    ones are trained whole. `KronA` never factors.

    rank:   R, the rank of W₂ where it is factored.
    alpha:  α; the update is scaled by α/R, whether W₂ is factored or not.
    factor: the rows and columns of W₁, where it divides those of the matrix, else an upper bound
            for them. None takes the split nearest to square, which has the fewest parameters.
    at:     projections. Queries and values, as for `LoRA`.
    """

    rank: int = 8
    alpha: float = 8.0
    factor: int | None = None
    at: Where = Where(("attn.q", "attn.v", "cross.q?", "cross.v?"))

    identity: ClassVar[bool] = True
    size: ClassVar[str] = "rank"
    paper: ClassVar[str] = "Yeh et al., ICLR 2024"
    sources: ClassVar[Mapping[str, str]] = {
        "rank": "the default of peft",
        "alpha": "the default of peft, a scale of 1",
        "factor": "the default of peft",
        "lr": "chosen, as for `LoRA`",
    }

    @override
    def check(self) -> None:
        positive_int(self, "rank")
        positive(self, "alpha")
        if self.factor is not None:
            positive_int(self, "factor")

    @override
    def build(self, site: Site, shared: Shared) -> KroneckerOfFactors:
        require_site(self, site, site.is_projection, "projections such as 'attn.q'")
        return KroneckerOfFactors(site, self)


LoKr.examples = (LoKr(rank=1), LoKr(rank=2, factor=2, at=Where(("attn.k", "attn.o", "mlp.up"))))


class KroneckerOfFactors(Foldable, OutputDelta):
    """W₁ and W₂, d_out = m·n, d_in = p·q. W₁ starts at zero, so the base is what it was."""

    def __init__(self, site: Site, spec: LoKr):
        super().__init__()
        m, n = split(site.d_out, spec.factor)
        p, q = split(site.d_in, spec.factor)
        factored = spec.rank < max(n, q) / 2
        self.w1 = nn.Parameter(torch.zeros(m, p))  # [m, p]
        self.w2 = None if factored else kaiming(n, q)  # [n, q]
        self.b = kaiming(n, spec.rank) if factored else None  # [n, R]
        self.a = kaiming(spec.rank, q) if factored else None  # [R, q]
        self.scale = spec.alpha / spec.rank

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return kronecker(x, self.w1 * self.scale, self.second())

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return w + self.scale * torch.kron(self.w1.detach(), self.second().detach()), b

    def second(self) -> Tensor:
        """W₂, `[n, q]`."""
        if self.w2 is not None:
            return self.w2
        assert self.a is not None and self.b is not None
        return self.b @ self.a
