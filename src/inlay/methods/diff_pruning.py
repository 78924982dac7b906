"""Diff pruning: W + z ⊙ w, z gates that learn to be zero (Guo et al., ACL 2021, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.sparse import WeightsDelta, check_share, in_file, largest, part_of
from inlay.core.context import PassContext
from inlay.core.method import Method, ParameterGroup, Shared, positive
from inlay.core.piece import Piece
from inlay.core.site import BLOCK_ROLES, Site, Where
from inlay.errors import SpecError
from inlay.methods.sparse import Sparse

LOW, HIGH = -1.5, 1.5
"""γ and ζ: the interval to which a gate is stretched before it is cut to 0 … 1. As −γ/ζ = 1, its
logarithm, which the paper subtracts from α, is zero."""


@dataclass(frozen=True, repr=False)
class DiffPruning(Method):
    """A change to every weight, most of which a penalty drives to zero; few are kept.

    One training has three stages. First all changes learn under random gates, and a penalty on how
    many of these are expected to be open. When the part `relaxed` of the training is over, the
    largest changes of all places together are kept, so many as `keep` says, and the others are set
    to zero, for ever. In what remains of the training those that were kept learn alone. All stages
    share the schedule of the learning rate. The file holds what was kept. Whatever is saved in the
    first stage, in a loop of one's own, is not pruned yet, and neither is its file.

    Training takes memory for two numbers a weight, their gradients and what the optimiser keeps.

    keep:       the share of the weights at all places together that are kept.
    relaxed:    the part of the training in which gates are open or shut.
    penalty_weight: λ, weight of the expected number of open gates.
    gate:       α at the start, of every gate; at 5 almost all of them are open.
    gate_lr:    learning rate of α; that of the changes is the method's.
    structured: whether each matrix, gain and bias also has one gate for all of its weights.
    at:         projections and norms, with their biases.
    """

    keep: float = 0.005
    relaxed: float = 0.5
    penalty_weight: float = 1.25e-7
    gate: float = 5.0
    gate_lr: float = 0.1
    structured: bool = True
    at: Where = Where((*BLOCK_ROLES, "norm.embed?"))

    identity: ClassVar[bool] = True
    size: ClassVar[str] = "keep"
    lr: ClassVar[float] = 1e-4
    paper: ClassVar[str] = "Guo et al., ACL 2021"
    sources: ClassVar[Mapping[str, str]] = {
        "keep": "the paper's",
        "relaxed": "our choice; the authors train the stages by separate programs, 3 epochs each",
        "penalty_weight": "the authors' code for BERT-large",
        "gate": "the authors' code",
        "gate_lr": "the authors' code",
        "structured": "the paper's better variant",
        "lr": "our choice; the authors' code has 1e-5, and 5e-5 for what is kept",
    }

    @override
    def check(self) -> None:
        check_share(self, "keep")
        positive(self, "relaxed", "gate_lr")
        if self.relaxed > 1:
            raise SpecError(f"DiffPruning: relaxed is a part of the training, not {self.relaxed!r}")
        if self.penalty_weight < 0:
            raise SpecError("DiffPruning: penalty_weight must be 0 or more; 0 leaves it out")

    @override
    def with_size(self, steps: int) -> DiffPruning:
        """A share, in steps of 0.01 %."""
        return replace(self, keep=steps / 10_000)

    @override
    def build(self, site: Site, shared: Shared) -> GatedDelta:
        return GatedDelta(self, site)

    @override
    def penalty(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module]
    ) -> Tensor | None:
        gated = _gated(pieces)
        if not self.penalty_weight:
            return None
        counts = [piece.open_gates().sum() * ~piece.pruned for piece in gated]
        return self.penalty_weight * torch.stack(counts).sum()

    @override
    def after_step(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module], progress: float
    ) -> None:
        gated = {name: p for name, p in pieces.items() if isinstance(p, GatedDelta)}
        if progress < self.relaxed or any(bool(piece.pruned) for piece in gated.values()):
            return
        sizes = {name: piece.change(None).abs() for name, piece in gated.items()}
        kept = largest(sizes, max(1, part_of(self.keep, sum(map(len, sizes.values())))))
        for name, piece in gated.items():
            piece.prune(kept[name])

    @override
    def settled(self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module]) -> bool:
        return all(bool(piece.pruned) for piece in _gated(pieces))

    @override
    def parameter_groups(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module], learning_rate: float
    ) -> Sequence[ParameterGroup]:
        gated = _gated(pieces)
        gates = [piece.alpha for piece in gated]
        gates += [piece.group for piece in gated if piece.group is not None]
        return [
            ParameterGroup(tuple(piece.w for piece in gated), learning_rate),
            ParameterGroup(tuple(gates), self.gate_lr, weight_decay=0.0),
        ]

    @override
    def exported(self) -> Sparse:
        return Sparse(keep=self.keep, at=self.at)


DiffPruning.examples = (DiffPruning(keep=0.2, gate=0.7, at=Where(("attn.q?", "norm.attn?"))),)


class GatedDelta(WeightsDelta):
    """The change to the weights at one site, each under a gate, until it is pruned.

    In training a gate is drawn; otherwise it is what a draw of ½ gives. A checkpoint also holds
    which weights are kept (all of them, before), and whether that is settled.
    """

    draws: ClassVar[bool] = True
    kept: Tensor
    pruned: Tensor

    def __init__(self, spec: DiffPruning, site: Site):
        super().__init__(spec, site)
        self.name = site.name
        self.w = nn.Parameter(torch.zeros(self.count))  # [S]
        self.alpha = nn.Parameter(torch.full((self.count,), float(spec.gate)))  # [S]
        group = torch.full((len(self.sizes),), float(spec.gate))
        self.group = nn.Parameter(group) if spec.structured else None  # matrix or gain, bias
        self.register_buffer("kept", torch.ones(self.count, dtype=torch.bool))
        self.register_buffer("pruned", torch.zeros((), dtype=torch.bool))

    @override
    def change(self, context: PassContext | None) -> Tensor:
        gates = self._gates(context if self.training else None)
        return self.w * torch.where(self.pruned, self.kept.to(gates.dtype), gates)

    def open_gates(self) -> Tensor:
        """How likely it is that each weight's gates are open, P(z > 0), `[S]`."""
        single = self.alpha.sigmoid()
        return single if self.group is None else single * self._of_weights(self.group.sigmoid())

    def prune(self, positions: Tensor) -> None:
        """Keep the changes at these positions as they are, and no others."""
        change = self.change(None)
        self.kept.zero_()
        self.kept[positions.to(self.kept.device)] = True
        self.w.detach().copy_(change * self.kept)
        self.pruned.fill_(True)

    @override
    def export(self) -> dict[str, Tensor]:
        change = self.change(None).detach()
        positions = change.nonzero().flatten()
        return in_file(positions, change[positions], self.count)

    def _gates(self, context: PassContext | None) -> Tensor:
        """z of every weight, `[S]`."""
        gates = self._gate(self.alpha, context, "single")
        if self.group is None:
            return gates
        return gates * self._of_weights(self._gate(self.group, context, "group"))

    def _gate(self, alpha: Tensor, context: PassContext | None, kind: str) -> Tensor:
        """The hard-concrete gates z with these α, drawn where there is a context."""
        if context is not None:
            seed = context.generator("gates", kind, self.name).initial_seed()
            generator = torch.Generator(device=alpha.device).manual_seed(seed)
            u = torch.rand(alpha.shape, generator=generator, device=alpha.device)
            alpha = alpha + u.logit().to(alpha.dtype)
        return (alpha.sigmoid() * (HIGH - LOW) + LOW).clamp(0, 1)

    def _of_weights(self, groups: Tensor) -> Tensor:
        """For every weight the value of its group, `[S]`."""
        parts = [groups[i].expand(size) for i, size in enumerate(self.sizes)]
        return torch.cat(parts)


def _gated(pieces: Mapping[str, Piece]) -> list[GatedDelta]:
    return [piece for piece in pieces.values() if isinstance(piece, GatedDelta)]
