"""Side networks: networks beside a stack that read its blocks' outputs and replace its last state.

    embeddings ──┬─> block 0 ──┬─> … ──> block L-1 ──┬─> last state (dropped for these rows)
                 │ detach      │ detach              │ detach
                 └───────────> side network <────────┘ ──> last state that heads and losses read

The states are detached, so no gradient enters the base: where nothing else is trained, the base
runs without a graph.

In an encoder–decoder a `SideEncoder` replaces nothing. What it computes, `[B, S, W]`, must get to
the side network of the decoder, through whatever calls the two stacks: the model's forward,
`generate`, which repeats the encoder's output for beams, a user who keeps it for later. So it
travels in the encoder's output, as columns after those of the base, and the decoder's port takes
them out again before the decoder, or anything else there, sees them:

    encoder ──> [B, S, D] ─┐                           ┌─> [B, S, D] ──> decoder
                           ├─> [B, S, D + W] ──> … ────┤
    side encoder [B, S, W] ┘                           └─> context.side_states
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from inlay.architectures.chart import Chart, last_state
from inlay.core.method import Placed
from inlay.core.per_thread import PerThread
from inlay.core.piece import HeadPiece, Piece, SideEncoder, SideNetwork
from inlay.core.site import Site
from inlay.errors import PortError
from inlay.runtime.port import Port, StackState, accepts
from inlay.runtime.routing import Names
from inlay.runtime.stack_inputs import first_output, replace_last_state

SOURCE = "encoder_hidden_states"
"""The argument of a decoder that holds the encoder's last states."""


class _Pass(PerThread):
    """The pass under way.

    states: of the blocks so far; None where no side network serves. taps: x and y of projections
    that side networks read as well, by the id of the module. source: in a decoder what a side
    encoder computed, `[B, S, W]`; None where none did.
    """

    __slots__ = ()
    states: list[Tensor] | None = None
    taps: dict[int, tuple[Tensor, Tensor]] | None = None
    source: Tensor | None = None


@accepts(SideNetwork, SideEncoder)
class SidePort(Port):
    """The side networks of one stack."""

    label = "side network"

    def __init__(self, state: StackState):
        super().__init__(state)
        self.pieces: dict[str, SideNetwork | SideEncoder] = {}
        self._pass = _Pass()
        self._hooks: list[RemovableHandle] = []
        self._tap_hooks: dict[str, list[RemovableHandle]] = {}

    @classmethod
    @override
    def check(cls, method: str, site: Site, piece: Piece, chart: Chart) -> None:
        if site.role not in ("final", "final.target"):
            raise PortError(
                f"{method} is a side network, which stands at 'final' or 'final.target', "
                f"not at {site.role!r}"
            )
        if chart.stack(site.stack).is_recurrent:
            raise PortError(
                f"{method} is a side network, which keeps keys and values of earlier positions, "
                f"and {type(chart.base).__name__} keeps none; use a method inside its blocks, "
                "such as LoRA"
            )
        if isinstance(piece, SideEncoder) and (chart.decoder is None or site.role != "final"):
            raise PortError(
                f"{method} has a side network for an encoder at {site.role!r}, and no decoder "
                "reads the states there"
            )

    @override
    def add(self, name: str, site: Site, piece: Piece) -> None:
        assert isinstance(piece, SideNetwork | SideEncoder)
        if name in self.pieces:
            raise PortError(f"{name!r} has two side networks; one replaces the last state")
        if not self.pieces:
            layers = self.stack.layers
            self._hooks = [
                layers[0].register_forward_pre_hook(self._keep_input, with_kwargs=True),
                *(layer.register_forward_hook(self._keep_output) for layer in layers),
            ]
        self.pieces[name] = piece
        self._tap_hooks[name] = [
            site.host.register_forward_hook(self._keep_tap) for site in _taps(piece)
        ]
        self.state.relating.add(name)  # it needs the states of all positions

    @override
    def remove(self, name: str) -> None:
        self.pieces.pop(name, None)
        for hook in self._tap_hooks.pop(name, ()):
            hook.remove()
        if not self.pieces:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    def check_head(self) -> None:
        """Raise PortError where a side encoder serves rows whose states a trained head shall read.

        The head would learn alone: what the side encoder computes is read by the decoder's.
        """
        serving = sorted(self.routing.serving().intersection(self.pieces))
        if any(isinstance(self.pieces[name], SideEncoder) for name in serving):
            raise PortError(
                f"a trained head reads the encoder, and the side network of {serving[0]!r} ends in "
                "the decoder; take a task that writes its answer, or the encoder alone as the base"
            )

    @override
    def receive(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """In a decoder, take out of the encoder's states what a side encoder put behind them."""
        states = inputs.get(SOURCE) if self.stack.reads_encoder else None
        if not isinstance(states, Tensor) or states.shape[-1] <= (width := self._source_width()):
            self._pass.source = None
            return inputs
        self._pass.source = states[..., width:]
        return {**inputs, SOURCE: states[..., :width]}

    @override
    def enter(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Begin to keep states, where a side network serves."""
        serves = not self.routing.serving().isdisjoint(self.pieces)
        self._pass.states = [] if serves else None
        self._pass.taps = {} if serves else None
        return inputs if self._pass.source is None else self._detached(inputs)

    @override
    def leave(self, output: Any) -> Any:
        """Replace the last state of the rows that a side network serves."""
        states, self._pass.states = self._pass.states, None
        taps, self._pass.taps = self._pass.taps, None
        source, self._pass.source = self._pass.source, None
        if states is None or taps is None:
            return output
        last = last_state(output)
        states = [_by_rows(state, last) for state in states]
        self._check_states(states, last)
        networks = {n: p for n, p in self.pieces.items() if isinstance(p, SideNetwork)}
        encoders = {n: p for n, p in self.pieces.items() if isinstance(p, SideEncoder)}
        context = replace(self.state.context.of(last), side_states=source)
        groups = self.routing.groups(len(last), networks)
        if groups is not None:
            tapped = [_by_rows(tensor, last) for pair in taps.values() for tensor in pair]
            run = partial(self._run, [*taps])
            last = groups.apply(run, (*states, *tapped, last), context)
            output = replace_last_state(output, last)
        groups = self.routing.groups(len(last), encoders)
        if groups is not None:
            width = max(encoders[name].width for names in groups.names for name in names)
            columns = last.new_zeros(*last.shape[:-1], width)
            columns = groups.apply(self._run_encoder, (*states, columns), context)
            output = replace_last_state(output, torch.cat((last, columns), -1))
        return output

    def _check_states(self, states: Sequence[Tensor], last: Tensor) -> None:
        """Raise PortError where the blocks do not hand on one state for each of the positions."""
        wanted, blocks = (3, *last.shape[:2]), len(self.stack.layers)
        shapes = [(state.dim(), *state.shape[:2]) for state in states]
        mask = self.state.context.mask
        if last.dim() == 3 and mask is not None and mask.shape[1] < last.shape[1]:
            raise PortError(
                f"{type(self.stack.module).__name__} puts positions of its own beside a text: its "
                f"mask has {mask.shape[1]}, and it returns {last.shape[1]}, which a side network "
                "cannot tell apart; use a method inside its blocks, such as LoRA"
            )
        if last.dim() == 3 and shapes == [wanted] * (blocks + 1):
            return
        lists = ", ".join(str(list(shape)) for shape in dict.fromkeys(s.shape for s in states))
        raise PortError(
            f"a side network reads what goes into {blocks} blocks and out of each, one state for "
            f"each of the positions that {type(self.stack.module).__name__} returns, "
            f"{list(last.shape)}, and they hand on {len(states)} of {lists}; use a method inside "
            "its blocks, such as LoRA"
        )

    def _run(self, tapped: Sequence[int], names: Names, *arguments: Any) -> Tensor:
        """The last side network of these inlays, on (states …, x, y, …, last state, context).

        tapped: the ids of the modules whose x and y there are.
        """
        *tensors, last, context = arguments
        piece, count = self.pieces[names[-1]], len(self.stack.layers) + 1
        pairs = {number: tensors[count + 2 * i :][:2] for i, number in enumerate(tapped)}
        own = [tensor for site in _taps(piece) for tensor in pairs[id(site.host)]]
        result: Tensor = piece((*tensors[:count], *own), last.detach(), context)
        return result

    def _run_encoder(self, names: Names, *arguments: Any) -> Tensor:
        """The same for a side encoder, on (states …, empty columns, context)."""
        *states, columns, context = arguments
        result = self.pieces[names[-1]](tuple(states), context)
        return F.pad(result, (0, columns.shape[-1] - result.shape[-1]))

    def _source_width(self) -> int:
        """D, the width of the encoder's states."""
        encoder = self.state.chart.stacks[0].name
        return next(
            site.d_out
            for site in self.state.chart.sites
            if site.role == "final" and site.stack == encoder
        )

    def _detached(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs without gradient in the encoder's states, where side networks serve all rows.

        They came in one tensor with the side encoder's, and so with its graph. None of it would
        reach the rows that a side network serves; other rows may learn in the encoder.
        """
        states: Tensor = inputs[SOURCE]
        groups = self.routing.groups(len(states), self.pieces)
        if groups is None or not all(groups.names):
            return inputs
        return {**inputs, SOURCE: states.detach()}

    def _keep_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = self._pass.states
        if states is not None and not states:
            hidden = args[0] if args else next(iter(kwargs.values()))
            states.append(hidden.detach())

    def _keep_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        states = self._pass.states
        if states is not None and len(states) <= len(self.stack.layers):
            states.append(first_output(output).detach())

    def _keep_tap(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        taps = self._pass.taps
        if taps is not None:
            taps[id(module)] = args[0].detach(), output.detach()


def check_gradients(placed: Sequence[Placed]) -> None:
    """Raise PortError where a piece would never learn: it is below a side network of its inlay."""
    networks = [p for p in placed if isinstance(p.piece, SideNetwork | SideEncoder)]
    for network in networks:
        for other in placed:
            above = isinstance(other.piece, HeadPiece | SideNetwork | SideEncoder)
            above = above or other.site.role in ("head", "base_head")
            if other.site.stack == network.site.stack and not above:
                kind, below = type(network.method).__name__, type(other.method).__name__
                raise PortError(
                    f"{below} at {other.site.name} would never learn beside {kind}, which lets no "
                    f"gradient into the base; attach one of them, or {below} as an inlay of its own"
                )


def _taps(piece: Piece) -> tuple[Site, ...]:
    return piece.taps if isinstance(piece, SideNetwork) else ()


def _by_rows(tensor: Tensor, last: Tensor) -> Tensor:
    """What a block or a projection handed on, for the rows of the last state, `[B, T, d]`.

    Projections may be given `[B · T, d]`. Blocks that run once for several inlays (`shared_layers`)
    hand on fewer rows, which stand for every copy.
    """
    if tensor.dim() == 2 and last.dim() == 3 and not len(tensor) % last.shape[1]:
        tensor = tensor.unflatten(0, (-1, last.shape[1]))
    if tensor.dim() != last.dim() or not len(tensor) < len(last):
        return tensor
    return tensor.repeat(len(last) // len(tensor), 1, 1)
