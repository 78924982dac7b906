"""Sparse: W + δ, where few entries of δ are not zero: drawn at random, or chosen by a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from typing_extensions import override

from inlay.blocks.sparse import SparseDelta, check_share, count_weights, part_of, spread
from inlay.core.method import Method, Shared
from inlay.core.site import BLOCK_ROLES, Site, Where


@dataclass(frozen=True, repr=False)
class Sparse(Method):
    """Some weights of the base, each trained as it is; all others stay what they are, bit for bit.

    Attached by itself it draws them: what methods that choose weights are compared with. It also
    reads the files of FISH and of DiffPruning, which hold nothing but positions and changes.

    keep: the share of the weights at each place that are trained.
    seed: of the draw.
    at:   projections and norms, with their biases.
    """

    keep: float = 0.005
    seed: int = 0
    at: Where = Where((*BLOCK_ROLES, "norm.embed?"))

    identity: ClassVar[bool] = True
    size: ClassVar[str] = "keep"
    sources: ClassVar[Mapping[str, str]] = {
        "keep": "that of FISH and diff pruning",
        "seed": "our choice",
        "lr": "our choice",
    }

    @override
    def check(self) -> None:
        check_share(self, "keep")

    @override
    def with_size(self, steps: int) -> Sparse:
        """A share, in steps of 0.01 %."""
        return replace(self, keep=steps / 10_000)

    @override
    def build(self, site: Site, shared: Shared) -> SparseDelta:
        size = count_weights(self, site)
        generator = torch.Generator().manual_seed(self.seed)
        return SparseDelta(self, site, spread(max(1, part_of(self.keep, size)), size, generator))


Sparse.examples = (Sparse(keep=0.2),)
