"""LoHa: y + (α/r) · (B₁A₁ ⊙ B₂A₂) x (Hyeon-Woo et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.bottleneck import linear
from inlay.blocks.init import kaiming
from inlay.blocks.low_rank import check_rank
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, positive, positive_int, require_site
from inlay.core.piece import Foldable, OutputDelta
from inlay.core.site import Site, Where


@dataclass(frozen=True, repr=False)
class LoHa(Method):
    """The elementwise product of two low-rank matrices: rank up to R² with the parameters of 2R.

    The paper calls it FedPara and replaces a layer by it; LyCORIS adds it to a frozen one.

    rank:  R, the rank of each of the two matrices.
    alpha: α; the update is scaled by α/R.
    at:    projections. Queries and values, as for `LoRA`.
    """

    rank: int = 8
    alpha: float = 8.0
    at: Where = Where(("attn.q", "attn.v", "cross.q?", "cross.v?"))

    identity: ClassVar[bool] = True
    size: ClassVar[str] = "rank"
    paper: ClassVar[str] = "Hyeon-Woo et al., ICLR 2022"
    sources: ClassVar[Mapping[str, str]] = {
        "rank": "the default of peft",
        "alpha": "the default of peft, a scale of 1",
        "lr": "chosen, as for `LoRA`",
    }

    @override
    def check(self) -> None:
        positive_int(self, "rank")
        positive(self, "alpha")

    @override
    def build(self, site: Site, shared: Shared) -> HadamardProduct:
        require_site(self, site, site.is_projection, "projections such as 'attn.q'")
        check_rank(self, site, self.rank)
        return HadamardProduct(site, self)


LoHa.examples = (LoHa(rank=2), LoHa(rank=3, alpha=1.0, at=Where(("attn.k", "attn.o", "mlp.up"))))


class HadamardProduct(Foldable, OutputDelta):
    """The four factors. B₂ starts at zero, so the base is what it was."""

    def __init__(self, site: Site, spec: LoHa):
        super().__init__()
        self.a1 = kaiming(spec.rank, site.d_in)  # [R, d_in]
        self.b1 = kaiming(site.d_out, spec.rank)  # [d_out, R]
        self.a2 = kaiming(spec.rank, site.d_in)  # [R, d_in]
        self.b2 = nn.Parameter(torch.zeros(site.d_out, spec.rank))  # [d_out, R]
        self.scale = spec.alpha / spec.rank

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        """Without a matrix of the base's size: the product has factors of its own, of rank R²."""
        down = (self.a1[:, None] * self.a2).flatten(0, 1)  # [R², d_in]
        up = (self.b1[:, :, None] * self.b2[:, None]).flatten(1)  # [d_out, R²]
        return linear(linear(x, down), up * self.scale)

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        product = (self.b1 @ self.a1) * (self.b2 @ self.a2)  # [d_out, d_in]
        return w + self.scale * product.detach(), b
