"""LoRA: y + (α/r) · B A x (Hu et al., ICLR 2022, section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from inlay.blocks.bottleneck import linear
from inlay.blocks.init import kaiming
from inlay.blocks.low_rank import check_rank
from inlay.core.context import PassContext
from inlay.core.method import (
    Method,
    ParameterGroup,
    Shared,
    fraction,
    positive,
    positive_int,
    require_site,
)
from inlay.core.piece import Foldable, OutputDelta, Piece, TwoProjections
from inlay.core.site import Site, Where
from inlay.errors import SpecError


@dataclass(frozen=True, repr=False)
class LoRA(Method):
    """A low-rank update of a frozen matrix; folds into it without a trace in speed.

    rank:    R, the rank of the update. 8 is enough for most tasks (section 7.2).
    alpha:   α; the update is scaled by α/R, so that R can change and the learning rate stay.
    dropout: fraction of x that is dropped on the way into A, in training.
    at:      projections. Queries and values, the paper's choice for a fixed budget (section 7.1).
    stabilised: scale by α/√R instead, so that large ranks learn as fast as small ones (rsLoRA,
             Kalajdzievski, 2023).
    start:   "zero", as in the paper: B is zero and A random. "orthogonal": both are random, and
             BA is zero because the rows and columns they meet in are orthogonal; R is even.
             "principal": the R largest singular values of the matrix and their vectors, so that
             these are trained (PiSSA, Meng et al., NeurIPS 2024); what they start with is
             subtracted, and the file is a LoRA of rank 2R.
    ratio:   how much larger the learning rate of B is than that of A (LoRA+, Hayou et al., ICML
             2024, whose advice is 16).
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    at: Where = Where(("attn.q", "attn.v", "cross.q?", "cross.v?"))
    stabilised: bool = False
    start: Literal["zero", "orthogonal", "principal"] = "zero"
    ratio: float = 1.0

    identity: ClassVar[bool] = True
    size: ClassVar[str] = "rank"
    paper: ClassVar[str] = "Hu et al., ICLR 2022"
    sources: ClassVar[Mapping[str, str]] = {
        "rank": "8 is enough for most tasks (section 7.2)",
        "alpha": "our choice: twice the rank, as is common",
        "ratio": "A and B alike, as in the paper",
        "dropout": "our choice",
        "lr": "our choice, for short runs",
    }

    @override
    def check(self) -> None:
        positive_int(self, "rank")
        positive(self, "alpha", "ratio")
        fraction(self, "dropout")
        if self.start not in ("zero", "orthogonal", "principal"):
            raise SpecError(
                f'LoRA: start is "zero", "orthogonal" or "principal", not {self.start!r:.40}'
            )
        if self.start == "orthogonal" and self.rank % 2:
            raise SpecError(f'LoRA: start="orthogonal" needs an even rank, not {self.rank}')

    @override
    def build(self, site: Site, shared: Shared) -> LowRank:
        require_site(self, site, site.is_projection, "projections such as 'attn.q'")
        if self.start == "principal":
            check_rank(self, site, 2 * self.rank)
            return PrincipalLowRank(site, self)
        check_rank(self, site, self.rank)
        return LowRank(site.d_in, site.d_out, self)

    @override
    def parameter_groups(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module], learning_rate: float
    ) -> Sequence[ParameterGroup]:
        """One group, or with a `ratio` one for all A and one for all B."""
        if self.ratio == 1:
            return super().parameter_groups(pieces, shared, learning_rate)
        factors = [piece for piece in pieces.values() if isinstance(piece, LowRank)]
        return [
            ParameterGroup(tuple(piece.a for piece in factors), learning_rate),
            ParameterGroup(tuple(piece.b for piece in factors), learning_rate * self.ratio),
        ]

    @override
    def exported(self) -> LoRA:
        """With the starting values that are subtracted, of twice the rank and the same scale."""
        if self.start != "principal":
            return self
        alpha = self.alpha * (2**0.5 if self.stabilised else 2)
        return replace(self, rank=2 * self.rank, alpha=alpha, start="zero")

    @property
    def scale(self) -> float:
        """The factor on BA."""
        return self.alpha / (self.rank**0.5 if self.stabilised else self.rank)


LoRA.examples = (
    LoRA(rank=2),
    LoRA(rank=1, at=Where(("attn.q", "attn.k", "attn.o", "mlp.up", "mlp.down"))),
    LoRA(rank=2, start="principal", stabilised=True, ratio=4.0),
    LoRA(rank=2, start="orthogonal", at=Where(("attn.v",))),
)


class LowRank(TwoProjections, Foldable, OutputDelta):
    """The two factors; their product starts at zero, so the base is what it was."""

    down = frozenset({"a"})

    def __init__(self, d_in: int, d_out: int, spec: LoRA):
        super().__init__()
        self.scale = spec.scale
        self.dropout = spec.dropout
        if spec.start == "orthogonal":
            a, b = orthogonal(spec.rank, d_in, d_out)
            self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        else:
            self.a = kaiming(spec.rank, d_in)  # [R, d_in]
            self.b = nn.Parameter(torch.zeros(d_out, spec.rank))  # [d_out, R]

    def factors(self) -> tuple[Tensor, Tensor]:
        """A `[r, d_in]` and B `[d_out, r]` of the whole update, without its scale."""
        return self.a, self.b

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        a, b = self.factors()
        return linear(linear(x, a), b * self.scale)

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        down, up = (factor.detach() for factor in self.factors())
        return w + self.scale * (up @ down), b


class PrincipalLowRank(LowRank):
    """Factors that start at the principal part of the matrix, and that part, subtracted."""

    a_start: Tensor
    b_start: Tensor

    def __init__(self, site: Site, spec: LoRA):
        super().__init__(site.d_in, site.d_out, spec)
        u, s, v = torch.linalg.svd(site.weight().detach().float(), full_matrices=False)
        roots = (s[: spec.rank] / self.scale).sqrt()
        self.a = nn.Parameter(roots[:, None] * v[: spec.rank])
        self.b = nn.Parameter(u[:, : spec.rank] * roots)
        self.register_buffer("a_start", self.a.detach().clone())
        self.register_buffer("b_start", self.b.detach().clone())

    @override
    def factors(self) -> tuple[Tensor, Tensor]:
        return torch.cat((self.a, self.a_start)), torch.cat((self.b, -self.b_start), 1)

    @override
    def export(self) -> dict[str, Tensor]:
        a, b = self.factors()
        return {"a": a.detach(), "b": b.detach()}


def orthogonal(rank: int, d_in: int, d_out: int) -> tuple[Tensor, Tensor]:
    """A `[R, d_in]` and B `[d_out, R]`, both random, with `B A = 0`.

    Each goes through one half of the columns of the same orthogonal matrix.
    """
    q = torch.linalg.qr(torch.randn(rank, rank)).Q
    first, second = q[:, : rank // 2], q[:, rank // 2 :]
    a = first @ torch.randn(rank // 2, d_in) / d_in**0.5
    b = torch.randn(d_out, rank // 2) @ second.mT / rank**0.5
    return a, b
