"""Gate: y + g · Δ(x, y), what another method adds, times a learned gate (Mao et al., ACL 2022)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.gates import InputGate, ScalarGate
from inlay.core.context import PassContext
from inlay.core.method import Method, ParameterGroup, Shared, Spec, sum_of
from inlay.core.piece import ExtraKV, Foldable, InputMap, OutputDelta, Piece
from inlay.core.readings import Readable, Reading
from inlay.core.site import Site
from inlay.core.wrapper import Wrapper
from inlay.errors import PortError, SpecError
from inlay.methods.lora import LoRA
from inlay.methods.prefix import Prefix


@dataclass(frozen=True, repr=False)
class Gate(Wrapper):
    """A learned factor a place on what another method changes there: 0 is the base, 1 the method.

    What an adapter adds before a norm, as `Pfeiffer` in a post-norm base, is scaled before it.

    reads="nothing": the factor is one number, and what is gated can be merged wherever the inner
    method can. reads="input": it is that of UniPELT, `g = mean over tokens of σ(x w + b)`, one a
    row, over its text alone, so that padding and other rows change nothing. x is what the inner
    method itself reads: what enters a projection, but what leaves a sub-layer that an adapter
    follows. In a decoder the mean is that of the tokens up to each position, since the paper's, of
    encoders, would look ahead; a prefix there, whose keys all positions share, has the gate σ(b).
    Around a prefix the gate scales keys and values, as in the authors' code; 0 is then zeros that
    are attended to, not the base.

    inner: a method that acts on the input or output of modules, such as `LoRA` or `Houlsby`, or
           with extra keys and values, such as `Prefix`.
    reads: what the gate depends on, "nothing" or "input".
    start: g at the beginning, for reads="nothing".
    at:    follows from the inner method: its places.
    """

    inner: Method = field(default_factory=LoRA)
    reads: Literal["nothing", "input"] = "nothing"
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
        if self.reads not in ("nothing", "input"):
            raise SpecError(f'Gate: reads is "nothing" or "input", not {self.reads!r:.40}')
        for name in ("at", "identity", "has_head", "passes", "size"):
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
        kind = next((k for inner, k in KINDS.items() if isinstance(piece, inner)), None)
        if kind is None:
            raise PortError(
                f"Gate acts on what a method changes at a module or attends to, and "
                f"{type(self.inner).__name__} does something else at {site.name}; gate a method "
                "such as LoRA, Houlsby or Prefix"
            )
        name = type(self.inner).__name__
        if self.reads == "input":
            width = site.d_out if reads_output(piece) else site.d_in
            for_keys = isinstance(piece, ExtraKV)
            return kind.by_input(piece, InputGate(site, width, for_keys=for_keys), name)
        gate = ScalarGate(self.start)
        return (kind.foldable if isinstance(piece, Foldable) else kind.plain)(piece, gate, name)

    @override
    def parameter_groups(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module], learning_rate: float
    ) -> Sequence[ParameterGroup]:
        """The inner method's groups, and the gates, which do not decay."""
        groups = super().parameter_groups(pieces, shared, learning_rate)
        gated = [piece for piece in pieces.values() if isinstance(piece, Gated)]
        gates = tuple(parameter for piece in gated for parameter in piece.gate.parameters())
        return [*groups, ParameterGroup(gates, learning_rate, weight_decay=0.0)]

    @override
    def exported(self) -> Method:
        return dataclasses.replace(self, inner=self.inner.exported())

    @override
    def expand(self, sites: Sequence[Site]) -> Spec:
        """A preset is expanded, and each of its methods gated."""
        methods = self.inner.expand(sites).methods
        return sum_of([dataclasses.replace(self, inner=method) for method in methods])


Gate.examples = (
    Gate(inner=LoRA(rank=2)),
    Gate(inner=LoRA(rank=1), start=0.5),
    Gate(inner=LoRA(rank=2), reads="input"),
    Gate(inner=Prefix(length=2, mlp=None, start=None), reads="input"),
)


class Gated(Readable, Piece):
    """A piece and its gate. A file holds the gate as `gate.…`, the inner piece as `inner.…`.

    name: of the method that is gated.
    """

    def __init__(self, inner: Piece, gate: ScalarGate | InputGate, name: str):
        super().__init__()
        self.inner = inner
        self.gate = gate
        self.name = name

    @override
    def readings(self) -> Sequence[Reading]:
        return [Reading("gate", "method", (self.name,), self.gate)]


def reads_output(piece: nn.Module) -> bool:
    """Whether a piece, or one inside it, reads what leaves its module, not what enters it."""
    return any(isinstance(part, OutputDelta) and part.reads_output for part in piece.modules())


class GatedOutput(Gated, OutputDelta):
    """`y + g · Δ(x, y)`."""

    inner: OutputDelta

    def __init__(self, inner: OutputDelta, gate: ScalarGate | InputGate, name: str):
        super().__init__(inner, gate, name)
        self.after = reads_output(inner)

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return self.inner.scaled(self._factor(x, y, context), x, y, context)

    @override
    def scaled(self, factor: Tensor, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return self.inner.scaled(factor * self._factor(x, y, context), x, y, context)

    def _factor(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return self.gate(y if self.after else x, self, context).to(y.dtype)


class GatedInput(Gated, InputMap):
    """`x + g · (f(x) - x)`."""

    @override
    def forward(self, x: Tensor, context: PassContext) -> Tensor:
        return x + self.gate(x, self, context).to(x.dtype) * (self.inner(x, context) - x)


class GatedKV(Gated, ExtraKV):
    """Keys and values, both times g."""

    def __init__(self, inner: ExtraKV, gate: ScalarGate | InputGate, name: str):
        super().__init__(inner, gate, name)
        self.length, self.shift = inner.length, inner.shift

    @override
    def forward(self, x: Tensor, context: PassContext) -> tuple[Tensor, Tensor]:
        k, v = self.inner(x, context)
        gate = self.gate(x, self, context).to(k.dtype)
        if gate.dim() > 1:
            gate = gate[:, None]  # [B, 1, 1, 1]
        return gate * k, gate * v


class GatedFold(Gated, Foldable):
    """Weights between those of the module and those of the inner piece: all of them are linear."""

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert isinstance(self.inner, Foldable) and isinstance(self.gate, ScalarGate)
        inner_w, inner_b = self.inner.fold(w, b)
        gate = self.gate.value.detach()
        bias = b if b is None or inner_b is None else b + gate * (inner_b - b)
        return w + gate * (inner_w - w), bias


class FoldableGatedOutput(GatedFold, GatedOutput):
    """A gated piece that can be merged."""


class FoldableGatedInput(GatedFold, GatedInput):
    """A gated piece that can be merged."""


class InputGatedOutput(GatedOutput):
    """A piece whose gate reads the text."""

    relates_positions: ClassVar[bool] = True


class InputGatedInput(GatedInput):
    """A piece whose gate reads the text."""

    relates_positions: ClassVar[bool] = True


class InputGatedKV(GatedKV):
    """A piece whose gate reads the text."""

    relates_positions: ClassVar[bool] = True


@dataclass(frozen=True)
class Kind:
    """The classes of gated pieces of one kind: plain, mergeable, and with a gate that reads x."""

    plain: Callable[..., Gated]
    foldable: Callable[..., Gated]
    by_input: Callable[..., Gated]


KINDS: dict[type[Piece], Kind] = {
    OutputDelta: Kind(GatedOutput, FoldableGatedOutput, InputGatedOutput),
    InputMap: Kind(GatedInput, FoldableGatedInput, InputGatedInput),
    ExtraKV: Kind(GatedKV, GatedKV, InputGatedKV),
}
