"""DoRA: m ⊙ (W + s B A) x / ‖W + s B A‖ + b (Liu et al., ICML 2024, section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from inlay.blocks.bottleneck import linear
from inlay.blocks.init import kaiming
from inlay.blocks.low_rank import check_rank
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, fraction, positive, positive_int, require_site
from inlay.core.piece import Foldable, OutputDelta
from inlay.core.site import Site, Where


@dataclass(frozen=True, repr=False)
class DoRA(Method):
    """A low-rank update whose direction and length, one length an output, are trained apart.

    Every pass computes the norms of the updated matrix, so that it costs about R / T as much again
    as the projection of T tokens; merged, it costs nothing.

    rank:    R, the rank of the update.
    alpha:   α; the update is scaled by s = α/R.
    dropout: share of x that is dropped on the way into A, in training.
    at:      projections. Queries and values, as for `LoRA`.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    at: Where = Where(("attn.q", "attn.v", "cross.q?", "cross.v?"))

    identity: ClassVar[bool] = True
    size: ClassVar[str] = "rank"
    paper: ClassVar[str] = "Liu et al., ICML 2024"
    sources: ClassVar[Mapping[str, str]] = {
        "rank": "chosen, as for `LoRA`",
        "alpha": "twice the rank, as in the authors' examples",
        "dropout": "chosen",
        "lr": "chosen, as for `LoRA`",
    }

    @override
    def check(self) -> None:
        positive_int(self, "rank")
        positive(self, "alpha")
        fraction(self, "dropout")

    @override
    def build(self, site: Site, shared: Shared) -> WeightDecomposed:
        require_site(self, site, site.is_projection, "projections such as 'attn.q'")
        check_rank(self, site, self.rank)
        return WeightDecomposed(site, self)


DoRA.examples = (
    DoRA(rank=2),
    DoRA(rank=1, at=Where(("attn.q", "attn.k", "attn.o", "mlp.up", "mlp.down"))),
)


class WeightDecomposed(Foldable, OutputDelta):
    """The factors and the lengths. B starts at zero and m at ‖W‖, so the base is what it was."""

    def __init__(self, site: Site, spec: DoRA):
        super().__init__()
        self.site = site
        self.a = kaiming(spec.rank, site.d_in)  # [R, d_in]
        self.b = nn.Parameter(torch.zeros(site.d_out, spec.rank))  # [d_out, R]
        self.magnitude = nn.Parameter(site.weight().detach().float().norm(dim=1))  # [d_out]
        self.scale = spec.alpha / spec.rank
        self.dropout = spec.dropout

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        """y is W x + b, and the bias is not scaled."""
        bias, gain = self.site.bias(), self._gain()
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        update = linear(linear(x, self.a), self.b * self.scale)
        projected = y if bias is None else y - bias
        return (gain - 1).to(y.dtype) * projected + gain.to(y.dtype) * update

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What methods before this one added to the bias is scaled, as their part of y is."""
        gain, bias = self._gain().detach(), self.site.bias()
        update = self.scale * (self.b.detach() @ self.a.detach())
        if b is not None and bias is not None:
            b = bias.to(b) + gain * (b - bias.to(b))
        return gain[:, None] * (w + update), b

    def _gain(self) -> Tensor:
        """m / ‖W + s B A‖, `[d_out]`; the norm gets no gradient (section 4.3)."""
        with torch.no_grad():
            weight = self.site.weight().to(self.a) + self.scale * (self.b @ self.a)
            norm = weight.norm(dim=1).clamp_min(1e-12)
        return self.magnitude / norm
