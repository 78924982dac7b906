"""VeRA: y + Λ_b B Λ_d A x, A and B random, frozen and shared (Kopiczko et al., ICLR 2024, 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.bottleneck import linear
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, positive, positive_int, require_site
from inlay.core.piece import Foldable, OutputDelta, Reference
from inlay.core.site import Site, Where


@dataclass(frozen=True, repr=False)
class VeRA(Method):
    """Two vectors a matrix, around one pair of random matrices that all places share.

    The pair is as large as the largest place needs; others read its first rows and columns. The
    file holds it once, so that it does not depend on how a machine draws random numbers.

    rank:    R, the inner width; it may be larger than the matrices.
    initial: what Λ_d starts with.
    at:      projections. Queries and values, the paper's choice for GLUE.
    """

    rank: int = 256
    initial: float = 0.1
    at: Where = Where(("attn.q", "attn.v", "cross.q?", "cross.v?"))

    identity: ClassVar[bool] = True
    lr: ClassVar[float] = 4e-3
    size: ClassVar[str] = "rank"
    paper: ClassVar[str] = "Kopiczko et al., ICLR 2024"
    sources: ClassVar[Mapping[str, str]] = {
        "rank": "the paper's for RoBERTa-large, and the default of peft",
        "initial": "the paper's, and the default of peft",
        "lr": "chosen; vectors learn at higher rates than matrices",
    }

    @override
    def check(self) -> None:
        positive_int(self, "rank")
        positive(self, "initial")

    @override
    def build(self, site: Site, shared: Shared) -> ScaledProjections:
        require_site(self, site, site.is_projection, "projections such as 'attn.q'")
        d_in, d_out = (max(getattr(s, name) for s in shared.sites) for name in ("d_in", "d_out"))
        projections = shared.module(
            "projections", lambda: RandomProjections(self.rank, d_in, d_out)
        )
        return ScaledProjections(site, self, projections)


VeRA.examples = (
    VeRA(rank=5),
    VeRA(rank=40, at=Where(("attn.q", "attn.v", "mlp.up", "mlp.down"))),
)


class RandomProjections(nn.Module):
    """A and B, uniform with the variance 2 / columns (He et al., 2015), never trained."""

    def __init__(self, rank: int, d_in: int, d_out: int):
        super().__init__()
        self.a = _frozen(rank, d_in)  # [R, largest d_in]
        self.b = _frozen(d_out, rank)  # [largest d_out, R]


def _frozen(rows: int, columns: int) -> nn.Parameter:
    bound = (6 / columns) ** 0.5
    return nn.Parameter(torch.empty(rows, columns).uniform_(-bound, bound), requires_grad=False)


class ScaledProjections(Foldable, OutputDelta):
    """The two vectors of one place. Λ_b starts at zero, so the base is what it was."""

    def __init__(self, site: Site, spec: VeRA, projections: RandomProjections):
        super().__init__()
        self._projections = Reference(projections)
        self.d_in, self.d_out = site.d_in, site.d_out
        self.scale_d = nn.Parameter(torch.full((spec.rank,), spec.initial))  # [R]
        self.scale_b = nn.Parameter(torch.zeros(site.d_out))  # [d_out]

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        a, b = self.projections()
        inner = linear(x, a) * self.scale_d.to(x.dtype)
        return linear(inner, b) * self.scale_b.to(x.dtype)

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        down, up = self.projections()
        scaled = self.scale_b.detach()[:, None] * up  # [d_out, R]
        return w + scaled @ (self.scale_d.detach()[:, None] * down), b

    def projections(self) -> tuple[Tensor, Tensor]:
        """A `[R, d_in]` and B `[d_out, R]` of this place: views of the shared pair."""
        shared = self._projections.module
        return shared.a[:, : self.d_in], shared.b[: self.d_out]
