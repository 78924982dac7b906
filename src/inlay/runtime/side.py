"""Side networks: networks beside a stack that read its blocks' outputs and replace its last state.

    embeddings ──┬─> block 0 ──┬─> … ──> block L-1 ──┬─> last state (dropped for these rows)
                 │ detach      │ detach              │ detach
                 └───────────> side network <────────┘ ──> last state that heads and losses read

The states are detached, so no gradient enters the base: where nothing else is trained, the base
runs without a graph.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from inlay.architectures.chart import Chart
from inlay.core.context import PassContext
from inlay.core.per_thread import PerThread
from inlay.core.piece import Piece, SideNetwork
from inlay.core.site import Site
from inlay.errors import PortError
from inlay.runtime.port import Port, StackState, accepts
from inlay.runtime.routing import Names
from inlay.runtime.stack_inputs import first_output, last_state, replace_last_state


class _Pass(PerThread):
    """The states of the pass under way; None where no side network serves it."""

    __slots__ = ()
    states: list[Tensor] | None = None


@accepts(SideNetwork)
class SidePort(Port):
    """The side networks of one stack."""

    label = "side network"

    def __init__(self, state: StackState):
        super().__init__(state)
        self.pieces: dict[str, SideNetwork] = {}
        self._pass = _Pass()
        self._hooks: list[RemovableHandle] = []

    @classmethod
    @override
    def check(cls, method: str, site: Site, piece: Piece, chart: Chart) -> None:
        if site.role not in ("final", "final.target"):
            raise PortError(
                f"{method} is a side network, which stands at 'final' or 'final.target', "
                f"not at {site.role!r}"
            )

    @override
    def add(self, name: str, site: Site, piece: Piece) -> None:
        assert isinstance(piece, SideNetwork)
        if name in self.pieces:
            raise PortError(f"{name!r} has two side networks; one replaces the last state")
        if not self.pieces:
            layers = self.stack.layers
            self._hooks = [
                layers[0].register_forward_pre_hook(self._keep_input, with_kwargs=True),
                *(layer.register_forward_hook(self._keep_output) for layer in layers),
            ]
        self.pieces[name] = piece
        self.state.relating.add(name)  # it needs the states of all positions

    @override
    def remove(self, name: str) -> None:
        self.pieces.pop(name, None)
        if not self.pieces:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    @override
    def enter(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Begin to keep states, where a side network serves."""
        serves = not self.routing.serving().isdisjoint(self.pieces)
        self._pass.states = [] if serves else None
        return inputs

    @override
    def leave(self, output: Any) -> Any:
        """Replace the last state of the rows that a side network serves."""
        states, self._pass.states = self._pass.states, None
        if states is None:
            return output
        last = last_state(output)
        groups = self.routing.groups(len(last), self.pieces)
        if groups is None:
            return output
        context = self.state.context.of(last)
        return replace_last_state(output, groups.apply(self._run, (*states, last), context))

    def _run(self, names: Names, *arguments: Any) -> Tensor:
        """The last side network of these inlays, on (states …, last state, context)."""
        *states, _, context = arguments
        assert isinstance(context, PassContext)
        result: Tensor = self.pieces[names[-1]](tuple(states), context)
        return result

    def _keep_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = self._pass.states
        if states is not None and not states:
            hidden = args[0] if args else next(iter(kwargs.values()))
            states.append(hidden.detach())

    def _keep_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        states = self._pass.states
        if states is not None and len(states) <= len(self.stack.layers):
            states.append(first_output(output).detach())
