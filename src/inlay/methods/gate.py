"""Gate: y + g · Δ(x, y), what another method adds, times a learned scalar (Mao et al., 2022)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.core.context import PassContext
from inlay.core.method import Loss, Method, ParameterGroup, Shared, Spec, sum_of
from inlay.core.piece import Foldable, InputMap, OutputDelta, Piece
from inlay.core.site import Site
from inlay.errors import PortError, SpecError
from inlay.methods.lora import LoRA


@dataclass(frozen=True, repr=False)
class Gate(Method):
    """One learned factor a place on what another method changes there: 0 is the base, 1 the method.

    After Mao et al., whose gates depend on the input (and therefore cannot be merged) and sit
    beside several methods; these can be merged wherever the inner method can.

    inner: a method that acts on the input or output of modules, such as `LoRA` or `Houlsby`.
    start: g at the beginning.
    at:    follows from the inner method: its places.
    """

    inner: Method = field(default_factory=LoRA)
    start: float = 1.0

    paper: ClassVar[str] = "Mao et al., ACL 2022"
    sources: ClassVar[Mapping[str, str]] = {
        "start": "chosen: the method as it is without a gate",
        "lr": "that of the inner method",
    }

    @override
    def check(self) -> None:
        """Also takes over what the inner method says of itself."""
        if not isinstance(self.inner, Method):
            raise SpecError(f"Gate: inner is one method, not {self.inner!r:.60}; gate each alone")
        for name in ("at", "identity", "has_head", "passes"):
            object.__setattr__(self, name, getattr(self.inner, name))
        if self.start == 0 and self.inner.identity:
            raise SpecError(
                f"Gate: with start=0 around {type(self.inner).__name__}, which starts at zero too, "
                "nothing would ever learn; use another start"
            )

    @override
    def build(self, site: Site, shared: Shared) -> Piece | None:
        piece = self.inner.build(site, shared)
        if piece is None:
            return None
        folds = isinstance(piece, Foldable)
        if isinstance(piece, OutputDelta):
            return (FoldableGatedOutput if folds else GatedOutput)(piece, self.start)
        if isinstance(piece, InputMap):
            return (FoldableGatedInput if folds else GatedInput)(piece, self.start)
        raise PortError(
            f"Gate acts on what a method changes at a module, and {type(self.inner).__name__} "
            f"does something else at {site.name}; gate a method such as LoRA or Houlsby"
        )

    @override
    def learning_rate(self) -> float:
        return self.inner.learning_rate()

    @property
    @override
    def needs_preparation(self) -> bool:
        return self.inner.needs_preparation

    @property
    @override
    def has_penalty(self) -> bool:
        return self.inner.has_penalty

    @property
    @override
    def has_schedule(self) -> bool:
        return self.inner.has_schedule

    @override
    def prepare(
        self, base: PreTrainedModel, sites: Sequence[Site], batches: Iterable[Loss]
    ) -> Mapping[str, Tensor]:
        return self.inner.prepare(base, sites, batches)

    @override
    def finish(self, pieces: Mapping[str, Piece], shared: Shared) -> None:
        self.inner.finish(_inner(pieces), shared)

    @override
    def penalty(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module]
    ) -> Tensor | None:
        return self.inner.penalty(_inner(pieces), shared)

    @override
    def consistency(self, divergence: Tensor) -> Tensor:
        return self.inner.consistency(divergence)

    @override
    def after_step(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module], progress: float
    ) -> None:
        self.inner.after_step(_inner(pieces), shared, progress)

    @override
    def parameter_groups(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module], learning_rate: float
    ) -> Sequence[ParameterGroup]:
        """The inner method's groups, and the gates, which do not decay."""
        groups = self.inner.parameter_groups(_inner(pieces), shared, learning_rate)
        gates = tuple(piece.gate for piece in pieces.values() if isinstance(piece, Gated))
        return [*groups, ParameterGroup(gates, learning_rate, weight_decay=0.0)]

    @override
    def exported(self) -> Method:
        return dataclasses.replace(self, inner=self.inner.exported())

    @override
    def expand(self, sites: Sequence[Site]) -> Spec:
        """A preset is expanded, and each of its methods gated."""
        methods = self.inner.expand(sites).methods
        return sum_of([dataclasses.replace(self, inner=method) for method in methods])


Gate.examples = (Gate(inner=LoRA(rank=2)), Gate(inner=LoRA(rank=1), start=0.5))


class Gated(Piece):
    """A piece and its gate. A file holds `gate`, and the inner piece's tensors as `inner.…`."""

    def __init__(self, inner: Piece, start: float):
        super().__init__()
        self.inner = inner
        self.gate = nn.Parameter(torch.tensor([float(start)]))  # [1]

    @override
    def export(self) -> dict[str, Tensor]:
        inner = {INNER + name: tensor for name, tensor in self.inner.export().items()}
        return {"gate": self.gate.detach(), **inner}

    @override
    def resize(self, shapes: Mapping[str, torch.Size]) -> None:
        self.inner.resize({name[len(INNER) :]: s for name, s in shapes.items() if name != "gate"})

    @override
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.gate.detach().copy_(tensors["gate"])
        self.inner.load({name[len(INNER) :]: t for name, t in tensors.items() if name != "gate"})


INNER = "inner."


class GatedOutput(Gated, OutputDelta):
    """`y + g · Δ(x, y)`."""

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return self.gate.to(y.dtype) * self.inner(x, y, context)


class GatedInput(Gated, InputMap):
    """`x + g · (f(x) - x)`."""

    @override
    def forward(self, x: Tensor, context: PassContext) -> Tensor:
        return x + self.gate.to(x.dtype) * (self.inner(x, context) - x)


class GatedFold(Gated, Foldable):
    """Weights between those of the module and those of the inner piece: all of them are linear."""

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert isinstance(self.inner, Foldable)
        inner_w, inner_b = self.inner.fold(w, b)
        gate = self.gate.detach()
        bias = b if b is None or inner_b is None else b + gate * (inner_b - b)
        return w + gate * (inner_w - w), bias


class FoldableGatedOutput(GatedFold, GatedOutput):
    """A gated piece that can be merged."""


class FoldableGatedInput(GatedFold, GatedInput):
    """A gated piece that can be merged."""


def _inner(pieces: Mapping[str, Piece]) -> dict[str, Piece]:
    """The pieces of the inner method."""
    return {name: piece.inner for name, piece in pieces.items() if isinstance(piece, Gated)}
