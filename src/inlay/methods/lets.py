"""LeTS: tᵢ = xᵢ W + xᵢ (M ⊙ Δ) from frozen xᵢ, a recurrent cell over the tᵢ (Fu et al., ICML 2021).

h₀ ──> block 1 ──> block 2 ──> … ──> block L ──> h       the base, the same for every task
        x₁, x₁W     x₂, x₂W           x_L, x_L W
          │           │                 │                 t = x W + x (M ⊙ Δ)
s₀ ────> cell ──────> cell ───> … ───> cell ──> h + W_out s
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.blocks.bottleneck import linear
from inlay.blocks.init import kaiming
from inlay.core.context import PassContext
from inlay.core.method import Loss, Method, Shared, positive, positive_int
from inlay.core.piece import SideNetwork
from inlay.core.site import Site, Where
from inlay.errors import SiteError, SpecError


@dataclass(frozen=True, repr=False)
class LeTS(Method):
    """Learn to share: all tasks read one pass of the frozen base, each with a change of its own.

    In the paper (its abstract is what is public; there is no code): the base is never changed and
    computes once for all tasks; learnable components read its intermediate results, not each
    other's, through weights that are a sparse difference to the base's; the mask of the difference
    is found at the beginning of fine-tuning and then stays; what reads which layers is found by an
    architecture search. The tasks are those of GLUE, on BERT.

    Not in the paper, or not known to be: which weights the difference is to (here the down
    projection of every block's feed-forward layer); how the mask is found (here the weights with
    the largest squared gradients of the base's loss on the first batches, as many in each block);
    what puts the layers' results together (here one LSTM cell that goes over the blocks, at every
    position by itself, and adds to the base's last state, at first nothing); bases that are no
    encoders. The search is left out: every block is read. Without sparse kernels the mask saves
    storage, not computation.

    keep:    the share of each matrix that the difference has.
    hidden:  H, the width of the cell.
    batches: how many batches of the training data are looked at for the mask, at most.
    at:      follows from what it is: the last state, and the down projections.
    """

    keep: float = 0.035
    hidden: int = 128
    batches: int = 16

    identity: ClassVar[bool] = True
    lr: ClassVar[float] = 1e-3
    paper: ClassVar[str] = "Fu et al., ICML 2021"
    sources: ClassVar[Mapping[str, str]] = {
        "keep": "our choice: BERT-base gets the paper's 1.4 % in all",
        "hidden": "our choice",
        "batches": "our choice",
        "lr": "our choice",
    }

    @override
    def check(self) -> None:
        positive(self, "keep")
        positive_int(self, "hidden", "batches")
        if self.keep > 1:
            raise SpecError(f"LeTS: keep is a share of at most 1, not {self.keep!r}")
        object.__setattr__(self, "at", Where(("final", "final.target?", "block", "mlp.down?")))

    @override
    def prepare(
        self, base: PreTrainedModel, sites: Sequence[Site], batches: Iterable[Loss]
    ) -> Mapping[str, Tensor]:
        """The positions of the mask of every matrix, by site."""
        matrices = _matrices(sites)
        for site in matrices:
            if site.quantisation or not site.parameter.is_floating_point():
                raise SpecError(
                    "LeTS finds its mask by gradients of the base's weights, and those of "
                    f"{site.name} are quantised; open the base without quantisation"
                )
            site.parameter.requires_grad_(True)
        scores = [torch.zeros(site.d_out, site.d_in, device=site.device()) for site in matrices]
        for loss in islice(batches, self.batches):
            gradients = torch.autograd.grad(loss(), [site.parameter for site in matrices])
            for site, score, gradient in zip(matrices, scores, gradients, strict=True):
                score += site.own_matrix(gradient).float().square()
        return {
            site.name: score.flatten().topk(_count(self, site)).indices.sort().values
            for site, score in zip(matrices, scores, strict=True)
        }

    @override
    def build(self, site: Site, shared: Shared) -> LayerReader | None:
        if site.role not in ("final", "final.target"):
            return None
        if any(other.role == "final.target" for other in shared.sites):
            raise SiteError(
                "LeTS reads one stack, and this base has an encoder and a decoder; use a base with "
                "one, or LST"
            )
        matrices = _matrices(s for s in shared.sites if s.stack == site.stack)
        blocks = [s for s in shared.sites if s.role == "block" and s.stack == site.stack]
        if len(matrices) != len(blocks) or any(s.d_out != site.d_out for s in matrices):
            raise SiteError(
                "LeTS needs a down projection ('mlp.down') in every block, of the width of its "
                "last state; this base has others, so use a method inside its blocks, such as LoRA"
            )
        return LayerReader(self, site.d_out, matrices, shared)


LeTS.examples = (LeTS(keep=0.2, hidden=5),)


def _matrices(sites: Iterable[Site]) -> list[Site]:
    """The down projections to which there is a difference."""
    return [s for s in sites if s.role == "mlp.down" and s.expert is None and s.part is None]


def _count(spec: LeTS, site: Site) -> int:
    """N, how many weights of a matrix the difference has."""
    return max(1, math.floor(spec.keep * site.d_in * site.d_out + 1e-6))


class SparseDifference(nn.Module):
    """`x (M ⊙ Δ)`: a difference to N weights of a matrix, each known by its number in it."""

    positions: Tensor

    def __init__(self, site: Site, positions: Tensor):
        super().__init__()
        self.shape = (site.d_out, site.d_in)
        self.register_buffer("positions", positions.to(torch.int32))  # [N]
        self.values = nn.Parameter(torch.zeros(len(positions)))  # [N]

    @override
    def forward(self, x: Tensor) -> Tensor:
        """x `[..., d_in]` -> `[..., d_out]`."""
        nothing = self.values.new_zeros(math.prod(self.shape))
        difference = nothing.index_copy(0, self.positions.long(), self.values)
        return linear(x, difference.view(self.shape))


class Cell(nn.Module):
    """One step of an LSTM (Hochreiter and Schmidhuber, 1997)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.read = kaiming(4 * hidden, width)  # [4 H, D]
        self.recur = kaiming(4 * hidden, hidden)  # [4 H, H]
        self.bias = nn.Parameter(torch.zeros(4 * hidden))

    @override
    def forward(self, t: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """t `[..., D]`, state and memory `[..., H]` -> the next state and memory."""
        gates = linear(t, self.read, self.bias) + linear(state, self.recur)
        enter, keep, leave, new = gates.chunk(4, -1)
        memory = keep.sigmoid() * memory + enter.sigmoid() * new.tanh()
        return leave.sigmoid() * memory.tanh(), memory


class LayerReader(SideNetwork):
    """All blocks' differences, and what puts their results together."""

    def __init__(self, spec: LeTS, width: int, matrices: Sequence[Site], shared: Shared):
        super().__init__()
        self.taps = tuple(matrices)
        self.hidden = spec.hidden
        self.differences = nn.ModuleList(
            SparseDifference(site, _positions(spec, site, shared)) for site in matrices
        )
        self.cell = Cell(width, spec.hidden)
        self.out = nn.Parameter(torch.zeros(width, spec.hidden))  # [D, H]

    @override
    def forward(self, states: tuple[Tensor, ...], last: Tensor, context: PassContext) -> Tensor:
        state = memory = last.new_zeros(*last.shape[:-1], self.hidden)
        for t in self.results(states):
            state, memory = self.cell(t, state, memory)
        return last + linear(state, self.out)

    def results(self, states: tuple[Tensor, ...]) -> list[Tensor]:
        """tᵢ of every block, `[B, T, D]`: what its projection computes, and the difference."""
        pairs = states[-2 * len(self.taps) :]
        return [
            y + difference(x)
            for x, y, difference in zip(pairs[::2], pairs[1::2], self.differences, strict=True)
        ]


def _positions(spec: LeTS, site: Site, shared: Shared) -> Tensor:
    """The mask that was prepared; evenly spread where a file is read, which has its own."""
    prepared = shared.prepared.get(site.name)
    if prepared is not None:
        return prepared
    count, size = _count(spec, site), site.d_in * site.d_out
    return torch.arange(count) * size // count
