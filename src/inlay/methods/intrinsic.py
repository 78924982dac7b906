"""Intrinsic dimension: W + λ P(z), all weights moved in one small random subspace.

Li et al., ICLR 2018; Aghajanyan, Gupta and Zettlemoyer, ACL 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.bottleneck import linear
from inlay.blocks.fastfood import Fastfood
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, positive_int, require_site
from inlay.core.piece import Foldable, OutputDelta, Reference
from inlay.core.site import BLOCK_ROLES, Site, Where
from inlay.errors import SpecError


@dataclass(frozen=True, repr=False)
class Intrinsic(Method):
    """Trains a few numbers z, which move all weights along fixed random directions.

    Every matrix, gain and bias W of the base becomes W + λ P(z), with a random projection P of its
    own (Fastfood), the same z for all of them, and a trained scale λ each. How few numbers suffice
    to train a task is its intrinsic dimension: `inlay intrinsic-dimension` searches for it.

    A file holds z, the scales and the seed, from which the projections are drawn anew. They take
    9 bytes in memory for every weight (of sizes rounded up to powers of two).

    dimensions: d, how many numbers are trained in all, the scales included.
    scales:     whether every W has its λ (structure-aware, SAID), or all move alike (DID).
    seed:       of the projections.
    at:         projections and norms. Those of all blocks, the norms before and after them too.
    """

    dimensions: int = 20_000
    scales: bool = True
    seed: int = 0
    at: Where = Where((*BLOCK_ROLES, "norm.embed?"))

    identity: ClassVar[bool] = True
    lr: ClassVar[float] = 3e-2
    paper: ClassVar[str] = "Aghajanyan et al., ACL 2021"
    sources: ClassVar[Mapping[str, str]] = {
        "dimensions": "the runs of T-Few's and Compacter's authors with T5",
        "scales": "the paper's structure-aware variant, its better one",
        "seed": "chosen",
        "lr": "the runs of Compacter's authors with T5",
    }

    @override
    def check(self) -> None:
        positive_int(self, "dimensions")

    @override
    def build(self, site: Site, shared: Shared) -> SubspaceDelta:
        require_site(self, site, site.is_projection or site.is_norm, "projections and norms")
        subspace = shared.module("subspace", lambda: self._subspace(shared.sites))
        return SubspaceDelta(site, self, subspace)

    def _subspace(self, sites: Sequence[Site]) -> Subspace:
        scales = sum(2 if s.bias() is not None else 1 for s in sites) if self.scales else 0
        if self.dimensions <= scales:
            raise SpecError(
                f"Intrinsic: {scales} of the dimensions={self.dimensions} would be scales, one for "
                f"each matrix, gain and bias; give more than {scales}, or scales=False"
            )
        return Subspace(self.dimensions - scales)


Intrinsic.examples = (
    Intrinsic(dimensions=120, at=Where(("attn.q", "attn.v", "norm.attn?"))),
    Intrinsic(dimensions=40, scales=False, at=Where(("attn.q", "mlp.up?", "mlp.down?"))),
)


class Subspace(nn.Module):
    """z, the position in the subspace. It starts at zero, so the base is what it was."""

    def __init__(self, dimensions: int):
        super().__init__()
        self.z = nn.Parameter(torch.zeros(dimensions))  # [d - m], m scales


class SubspaceDelta(Foldable, OutputDelta):
    """The change of one projection or norm, λ P(z) for its matrix or gain and for its bias."""

    def __init__(self, site: Site, spec: Intrinsic, subspace: Subspace):
        super().__init__()
        self._subspace = Reference(subspace)
        self.normalised = site.normalised() if site.is_norm else None
        self.shape = (site.d_out,) if site.is_norm else (site.d_out, site.d_in)
        sizes = {"weight": torch.Size(self.shape).numel()}
        if site.bias() is not None:
            sizes["bias"] = site.d_out
        self.projections = nn.ModuleDict(
            {
                name: Fastfood(len(subspace.z), size, f"{spec.seed}/{site.name}/{name}")
                for name, size in sizes.items()
            }
        )
        self.scales = nn.Parameter(torch.ones(len(sizes))) if spec.scales else None  # [1 or 2], λ
        self._kept: tuple[tuple[object, ...], tuple[Tensor, Tensor | None]] | None = None

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        weight, bias = self.values()
        if self.normalised is None:
            return linear(x, weight, bias)
        delta = self.normalised(x) * weight.to(x.dtype)
        return delta if bias is None else delta + bias.to(x.dtype)

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            weight, bias = self.values()
        return w + weight, b if b is None or bias is None else b + bias

    def values(self) -> tuple[Tensor, Tensor | None]:
        """What is added to the matrix or gain, and to the bias; None where there is none.

        Without gradients they are kept until z or the scales change.
        """
        z, scales = self._subspace.module.z, self.scales
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._projected(z)
        state = [(t._version, t.data_ptr()) for t in (z, scales) if t is not None]
        if self._kept is None or self._kept[0] != (z.device, *state):
            self._kept = (z.device, *state), self._projected(z)
        return self._kept[1]

    def _projected(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        parts = [projection(z) for projection in self.projections.values()]
        if self.scales is not None:
            parts = [part * scale for part, scale in zip(parts, self.scales, strict=True)]
        return parts[0].view(self.shape), parts[1] if len(parts) > 1 else None
