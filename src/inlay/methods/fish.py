"""FISH mask: W + m ⊙ δ, m the weights of most Fisher information (Sung et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.blocks.dense import own_parameters
from inlay.blocks.sparse import (
    SparseDelta,
    check_share,
    count_weights,
    flat,
    largest,
    part_of,
    spread,
)
from inlay.core.method import Loss, Method, Shared, positive_int
from inlay.core.site import BLOCK_ROLES, Site, Where
from inlay.methods.sparse import Sparse


@dataclass(frozen=True, repr=False)
class FISH(Method):
    """The weights that matter most to the task, chosen once, before training, and trained alone.

    What a weight matters is its Fisher information: the mean over training rows of the squared
    gradient of one row's loss (a row of several labels or tokens has the mean loss of these). The
    largest of all places together are kept. Computing it takes a pass in both directions for each
    row, and memory for two numbers a weight.

    A trained head is not counted, and always learns whole. Embeddings stay frozen.

    keep:    κ, the share of the weights at all places together that are trained.
    samples: N, how many training rows are looked at, at most.
    at:      projections and norms, with their biases.
    """

    keep: float = 0.005
    samples: int = 1024
    at: Where = Where((*BLOCK_ROLES, "norm.embed?"))

    identity: ClassVar[bool] = True
    size: ClassVar[str] = "keep"
    paper: ClassVar[str] = "Sung et al., NeurIPS 2021"
    sources: ClassVar[Mapping[str, str]] = {
        "keep": "the paper's for language understanding; it tries 0.0002 to 0.005",
        "samples": "the authors' code",
        "lr": "our choice",
    }

    @override
    def check(self) -> None:
        check_share(self, "keep")
        positive_int(self, "samples")

    @override
    def with_size(self, steps: int) -> FISH:
        """A share, in steps of 0.01 %."""
        return replace(self, keep=steps / 10_000)

    @property
    @override
    def preparation_rows(self) -> int:
        """One: the mean over rows is of squares, not the square of a mean."""
        return 1

    @override
    def prepare(
        self, base: PreTrainedModel, sites: Sequence[Site], batches: Iterable[Loss]
    ) -> Mapping[str, Tensor]:
        """The positions of the chosen weights, by site."""
        scores = fisher_information(self, sites, islice(batches, self.samples))
        count = part_of(self.keep, sum(map(len, scores.values())))
        return largest(scores, max(1, count))

    @override
    def build(self, site: Site, shared: Shared) -> SparseDelta:
        positions = shared.prepared.get(site.name)
        if positions is None:
            size = count_weights(self, site)
            positions = spread(max(1, part_of(self.keep, size)), size)
        return SparseDelta(self, site, positions)

    @override
    def exported(self) -> Sparse:
        return Sparse(keep=self.keep, at=self.at)


FISH.examples = (FISH(keep=0.1, at=Where(("attn.q?", "norm.attn?"))),)


def fisher_information(
    method: Method, sites: Sequence[Site], rows: Iterable[Loss]
) -> dict[str, Tensor]:
    """The mean squared gradient of the loss of single rows, `[S]` by position for every site.

    Raises SpecError where weights are quantised.
    """
    parameters = own_parameters(method, sites)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    sums = {key: torch.zeros_like(p, dtype=torch.float32) for key, p in parameters.items()}
    count = 0
    for loss in rows:
        gradients = torch.autograd.grad(loss(), [*parameters.values()], allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient.float().square()
        count += 1
    scores = {}
    for site in sites:
        bias = site.bias_parameter
        of_bias = None if bias is None else sums[id(bias)]
        scores[site.name] = flat(site, sums[id(site.parameter)], of_bias) / count
    return scores
