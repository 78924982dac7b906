"""AdaLoRA: y + α/r · P Λ Q x with a budget of singular values (Zhang et al., ICLR 2023, 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.bottleneck import linear
from inlay.blocks.init import normal
from inlay.blocks.low_rank import check_rank
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, fraction, positive, positive_int, require_site
from inlay.core.piece import Foldable, OutputDelta, Piece
from inlay.core.site import Site, Where
from inlay.errors import SpecError

SMOOTHING = 0.85
"""β₁ and β₂: how much of the averages of importance and of its uncertainty stays, per step."""


@dataclass(frozen=True, repr=False)
class AdaLoRA(Method):
    """LoRA whose rank each matrix earns: unimportant singular values are set to zero.

    A training with more ranks than it may keep ends with `target` ranks a matrix on average; a
    triplet (singular value and its two vectors) is the more important the larger its parameters
    times their gradients have been, times how much that varied. The file holds what was kept.

    rank:       R, the rank of every matrix at the start; one and a half times `target`.
    target:     the average rank that is kept.
    alpha:      α; the update is scaled by α/R, whatever is kept.
    warmup:     fraction of the training before anything is set to zero.
    final:      fraction of the training, at its end, in which what was kept learns alone.
    interval:   fraction of the training between two selections.
    orthogonal: γ, weight of the penalty ‖PᵀP − I‖² + ‖QQᵀ − I‖² of every matrix.
    at:         projections. All of them, as in the paper.
    """

    rank: int = 12
    target: int = 8
    alpha: float = 16.0
    warmup: float = 0.1
    final: float = 0.3
    interval: float = 0.01
    orthogonal: float = 0.1
    at: Where = Where(
        (
            *("attn.q", "attn.k", "attn.v", "attn.o?", "mlp.up?", "mlp.gate?", "mlp.down?"),
            *("cross.q?", "cross.k?", "cross.v?", "cross.o?"),
        )
    )

    identity: ClassVar[bool] = True
    size: ClassVar[str] = "rank"
    paper: ClassVar[str] = "Zhang et al., ICLR 2023"
    sources: ClassVar[Mapping[str, str]] = {
        "rank": "the authors' script for question answering; the paper: 1.5 times the target",
        "target": "the authors' script for question answering",
        "alpha": "the authors' code",
        "warmup": "our choice",
        "final": "our choice",
        "interval": "our choice",
        "orthogonal": "the authors' script for MNLI",
        "lr": "the paper's for question answering",
    }

    @override
    def check(self) -> None:
        positive_int(self, "rank", "target")
        positive(self, "alpha", "interval")
        fraction(self, "warmup", "final")
        if self.target > self.rank:
            raise SpecError(
                f"AdaLoRA: target={self.target} is more than the rank={self.rank} that training "
                "starts with; give a rank of about one and a half times the target"
            )
        if self.warmup + self.final >= 1:
            raise SpecError("AdaLoRA: warmup and final must leave some of the training between")
        if self.orthogonal < 0:
            raise SpecError("AdaLoRA: orthogonal must be 0 or more; 0 leaves the penalty out")

    @override
    def with_size(self, steps: int) -> AdaLoRA:
        """A rank, of which two thirds are kept."""
        return replace(self, rank=steps, target=max(1, 2 * steps // 3))

    @override
    def build(self, site: Site, shared: Shared) -> SingularValues:
        require_site(self, site, site.is_projection, "projections such as 'attn.q'")
        check_rank(self, site, self.rank)
        return SingularValues(site.d_in, site.d_out, self)

    @override
    def penalty(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module]
    ) -> Tensor | None:
        terms = [piece.deviation() for piece in _triplets(pieces)]
        return self.orthogonal * torch.stack(terms).sum() if self.orthogonal else None

    @override
    def after_step(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module], progress: float
    ) -> None:
        triplets = _triplets(pieces)
        final = progress >= 1 - self.final
        if final and bool(triplets[0].final):  # what was kept learns alone
            for piece in triplets:
                piece.keep(piece.kept)
            return
        for piece in triplets:
            piece.note_importance()
        window = int((progress - self.warmup) / self.interval)
        if final or (progress >= self.warmup and window > int(triplets[0].window)):
            self._select(triplets, self.budget(progress, len(triplets)))
            for piece in triplets:
                piece.window.fill_(window)
                piece.final.fill_(final)

    @override
    def settled(self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module]) -> bool:
        return all(bool(piece.final) for piece in _triplets(pieces))

    def budget(self, progress: float, matrices: int) -> int:
        """b(t): how many singular values all matrices together may keep at this progress."""
        first, last = self.rank * matrices, self.target * matrices
        span = 1 - self.warmup - self.final
        left = min(max((1 - self.final - progress) / span, 0.0), 1.0)
        return round(last + (first - last) * left**3)

    def _select(self, triplets: list[SingularValues], budget: int) -> None:
        """Set all but the most important singular values to zero; ties are broken by order."""
        scores = torch.cat([piece.importance() for piece in triplets])
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[scores.sort(descending=True, stable=True).indices[:budget]] = True
        sizes = [len(piece.e) for piece in triplets]
        for piece, mask in zip(triplets, kept.split(sizes), strict=True):
            piece.keep(mask)


AdaLoRA.examples = (
    AdaLoRA(rank=3, target=2),
    AdaLoRA(rank=2, target=1, orthogonal=0.0, at=Where(("attn.q", "mlp.down"))),
)


class SingularValues(Foldable, OutputDelta):
    """One matrix's triplets. Λ starts at zero, so the base is what it was.

    A file holds P, Λ and Q of what is kept. A checkpoint also holds the averages of importance
    (`mean_…`) and uncertainty (`spread_…`), what is kept, the interval of the last selection
    (`window`), and whether that was the final one.
    """

    mean_q: Tensor
    mean_e: Tensor
    mean_p: Tensor
    kept: Tensor
    window: Tensor
    final: Tensor

    def __init__(self, d_in: int, d_out: int, spec: AdaLoRA):
        super().__init__()
        self.scale = spec.alpha / (spec.rank + 1e-5)
        self._set(normal(spec.rank, d_in, std=0.02), normal(d_out, spec.rank, std=0.02))

    def _set(self, q: nn.Parameter, p: nn.Parameter) -> None:
        """Take these vectors, with singular values of zero and no memory of importance."""
        rank = len(q)
        self.q = q  # [R, d_in]
        self.e = nn.Parameter(q.new_zeros(rank))  # [R], the singular values
        self.p = p  # [d_out, R]
        for name, parameter in (("q", q), ("e", self.e), ("p", p)):
            self.register_buffer(f"mean_{name}", torch.zeros_like(parameter))
            self.register_buffer(f"spread_{name}", torch.zeros_like(parameter))
        self.register_buffer("kept", torch.ones(rank, dtype=torch.bool, device=q.device))
        self.register_buffer("window", torch.full((), -1, device=q.device))
        self.register_buffer("final", torch.zeros((), dtype=torch.bool, device=q.device))

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return linear(linear(x, self.q) * (self.e * self.scale).to(x.dtype), self.p)

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        p, e, q = (tensor.detach() for tensor in (self.p, self.e, self.q))
        return w + self.scale * (p * e) @ q, b

    def deviation(self) -> Tensor:
        """‖PᵀP − I‖² + ‖QQᵀ − I‖²: how far the vectors are from orthogonal."""
        one = torch.eye(len(self.e), device=self.e.device)
        return (self.p.mT @ self.p - one).square().sum() + (self.q @ self.q.mT - one).square().sum()

    def note_importance(self) -> None:
        """Take the step just made into the averages of |w · g| and of how much it varies."""
        for name, parameter in (("q", self.q), ("e", self.e), ("p", self.p)):
            if parameter.grad is None:
                continue
            now = (parameter * parameter.grad).abs()
            mean, spread = getattr(self, f"mean_{name}"), getattr(self, f"spread_{name}")
            mean.lerp_(now, 1 - SMOOTHING)
            spread.lerp_((now - mean).abs(), 1 - SMOOTHING)

    def importance(self) -> Tensor:
        """S of every triplet, `[R]`: that of its value, and the means of those of its vectors."""
        q, e, p = (
            getattr(self, f"mean_{name}") * getattr(self, f"spread_{name}") for name in "qep"
        )
        return e + p.mean(0) + q.mean(1)

    def keep(self, kept: Tensor) -> None:
        """Set the singular values that are not kept, `[R]`, to zero."""
        self.kept.copy_(kept)
        self.e.detach().mul_(kept)

    @override
    def export(self) -> dict[str, Tensor]:
        kept = self.kept
        p, e, q = (tensor.detach() for tensor in (self.p, self.e, self.q))
        return {"p": p[:, kept].contiguous(), "e": e[kept], "q": q[kept].contiguous()}

    @override
    def resize(self, shapes: Mapping[str, torch.Size]) -> None:
        (rank,) = shapes["e"]
        if rank <= len(self.e):
            self._set(
                nn.Parameter(self.q.detach()[:rank].clone()),
                nn.Parameter(self.p.detach()[:, :rank].clone()),
            )

    @override
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in (("p", self.p), ("e", self.e), ("q", self.q)):
            parameter.detach().copy_(tensors[name])


def _triplets(pieces: Mapping[str, Piece]) -> list[SingularValues]:
    return [piece for piece in pieces.values() if isinstance(piece, SingularValues)]
