"""FAR: y_T + x δᵀ + c for a few outputs T of feed-forward layers (Vucetic et al., ISCAS 2022)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.blocks.bottleneck import linear
from inlay.blocks.dense import own_parameters
from inlay.blocks.sparse import check_share, part_of, spread
from inlay.core.context import PassContext
from inlay.core.method import Loss, Method, Shared, positive, positive_int, require_site
from inlay.core.piece import Foldable, OutputDelta
from inlay.core.site import Site, Where


@dataclass(frozen=True, repr=False)
class FAR(Method):
    """Freeze and reconfigure: of feed-forward layers those nodes learn that would move the most.

    A node is one output of a projection: a row of its matrix, and its bias where it has one. In a
    short training before, the priming, the whole feed-forward layers learn, together with a trained
    head if the task reads one; the nodes whose weights moved most are chosen, and everything is put
    back. Then these rows alone are trained, as a matrix of their own, so that neither gradients nor
    what the optimiser keeps exist for the others.

    learners:   the share of each projection's nodes that learn.
    priming:    how many steps the priming has.
    priming_lr: its learning rate.
    at:         feed-forward projections.
    """

    learners: float = 0.1
    priming: int = 100
    priming_lr: float = 1e-4
    at: Where = Where(("mlp.gate?", "mlp.up", "mlp.down"))

    identity: ClassVar[bool] = True
    size: ClassVar[str] = "learners"
    lr: ClassVar[float] = 1e-4
    paper: ClassVar[str] = "Vucetic et al., ISCAS 2022"
    sources: ClassVar[Mapping[str, str]] = {
        "learners": "our choice, typical for the method",
        "priming": "our choice",
        "priming_lr": "our choice, as for full fine-tuning",
        "lr": "our choice, as for full fine-tuning",
    }

    @override
    def check(self) -> None:
        check_share(self, "learners")
        positive_int(self, "priming")
        positive(self, "priming_lr")

    @override
    def with_size(self, steps: int) -> FAR:
        """A share, in steps of 1 %."""
        return replace(self, learners=steps / 100)

    @override
    def prepare(
        self, base: PreTrainedModel, sites: Sequence[Site], batches: Iterable[Loss]
    ) -> Mapping[str, Tensor]:
        """The numbers of the nodes that learn, in order, by site."""
        with _learning(self, sites) as before:
            learning = [p for p in base.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(learning, self.priming_lr, weight_decay=0.0)
            for loss in islice(cycle(batches), self.priming):
                loss().backward()
                optimizer.step()
                optimizer.zero_grad()
            moved = {
                site.name: site.own_matrix(
                    (site.parameter.detach() - before[id(site.parameter)]).float()
                )
                for site in sites
            }
        return {name: self._most_moved(difference) for name, difference in moved.items()}

    def _most_moved(self, difference: Tensor) -> Tensor:
        """The rows of `[d_out, d_in]` whose entries add up to most, without their signs."""
        distance = difference.abs().sum(1)
        return distance.topk(self._count(len(distance))).indices.sort().values

    def _count(self, nodes: int) -> int:
        return max(1, part_of(self.learners, nodes))

    @override
    def build(self, site: Site, shared: Shared) -> TrainedNodes:
        require_site(self, site, site.is_projection, "projections such as 'mlp.up'")
        nodes = shared.prepared.get(site.name)
        if nodes is None:
            nodes = spread(self._count(site.d_out), site.d_out)
        return TrainedNodes(site, nodes)


FAR.examples = (FAR(learners=0.2),)


@contextmanager
def _learning(method: Method, sites: Sequence[Site]) -> Iterator[Mapping[int, Tensor]]:
    """Inside, the weights at these sites may be trained; afterwards they are what they were.

    Yields what they were, by the id of the parameter. Raises SpecError where they are quantised.
    """
    parameters = own_parameters(method, sites)
    before = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        yield before
    finally:
        for key, parameter in parameters.items():
            parameter.requires_grad_(False)
            parameter.detach().copy_(before[key])


class TrainedNodes(Foldable, OutputDelta):
    """A change to some outputs of a projection, beginning at zero."""

    nodes: Tensor

    def __init__(self, site: Site, nodes: Tensor):
        super().__init__()
        self.register_buffer("nodes", nodes.to(torch.int32))  # [N], in order
        self.weight = nn.Parameter(torch.zeros(len(nodes), site.d_in))  # [N, d_in]
        biased = site.bias_parameter is not None
        self.bias = nn.Parameter(torch.zeros(len(nodes))) if biased else None  # [N]

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        change = linear(x, self.weight, self.bias)  # [..., N]
        return torch.zeros_like(y).index_copy(-1, self.nodes.long(), change)

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        nodes = self.nodes.long()
        w = w.index_add(0, nodes, self.weight.detach())
        if b is not None and self.bias is not None:
            b = b.index_add(0, nodes, self.bias.detach())
        return w, b
