"""LoRA: y + (α/r) · B A x (Hu et al., ICLR 2022, section 4.1)."""

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
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, fraction, positive, positive_int, require_site
from inlay.core.piece import Foldable, OutputDelta
from inlay.core.site import Site, Where
from inlay.errors import SpecError


@dataclass(frozen=True, repr=False)
class LoRA(Method):
    """A low-rank update of a frozen matrix; folds into it without a trace in speed.

    rank:    R, the rank of the update. 8 is enough for most tasks (section 7.2).
    alpha:   α; the update is scaled by α/R, so that R can change and the learning rate stay.
    dropout: fraction of x that is dropped on the way into A, in training.
    at:      projections. Queries and values, the paper's choice for a fixed budget (section 7.1).
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    at: Where = Where(("attn.q", "attn.v", "cross.q?", "cross.v?"))

    identity: ClassVar[bool] = True
    paper: ClassVar[str] = "Hu et al., ICLR 2022"
    sources: ClassVar[Mapping[str, str]] = {
        "rank": "8 is enough for most tasks (section 7.2)",
        "alpha": "our choice: twice the rank, as is common",
        "dropout": "our choice",
        "lr": "our choice, for short runs",
    }

    @override
    def check(self) -> None:
        positive_int(self, "rank")
        positive(self, "alpha")
        fraction(self, "dropout")

    @override
    def build(self, site: Site, shared: Shared) -> LowRank:
        require_site(self, site, site.is_projection, "projections such as 'attn.q'")
        if self.rank > min(site.d_in, site.d_out):
            raise SpecError(
                f"LoRA: rank {self.rank} is larger than the matrix at {site.name} "
                f"({site.d_out} × {site.d_in}); use at most {min(site.d_in, site.d_out)}"
            )
        return LowRank(site.d_in, site.d_out, self)


LoRA.examples = (
    LoRA(rank=2),
    LoRA(rank=1, at=Where(("attn.q", "attn.k", "attn.o", "mlp.up", "mlp.down"))),
)


class LowRank(Foldable, OutputDelta):
    """The two factors. B starts at zero, so the base is what it was."""

    def __init__(self, d_in: int, d_out: int, spec: LoRA):
        super().__init__()
        self.a = kaiming(spec.rank, d_in)  # [R, d_in]
        self.b = nn.Parameter(torch.zeros(d_out, spec.rank))  # [d_out, R]
        self.scale = spec.alpha / spec.rank
        self.dropout = spec.dropout

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return linear(linear(x, self.a), self.b * self.scale)

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return w + self.scale * (self.b.detach() @ self.a.detach()), b
