"""Port: one way into a stack of the base, and the registry from kinds of pieces to ports.

A new kind of piece is a subclass of `Piece` and a port, in one file:

    @accepts(MyKind)
    class MyPort(Port):
        def add(self, name, site, piece): ...      # let a piece in
        def remove(self, name): ...                # take an inlay's pieces out
        def enter(self, inputs): ...               # optional: before all blocks
        def leave(self, output): ...               # optional: after them

Every stack of a base with inlays has one port of each class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import torch

from inlay.architectures.chart import Chart, Stack
from inlay.core.context import PassContext
from inlay.core.per_thread import PerThread
from inlay.core.piece import Piece
from inlay.core.site import Site
from inlay.errors import PortError
from inlay.runtime.routing import Names, Routing
from inlay.runtime.row_axis import RowAxis
from inlay.runtime.stack_inputs import main_input

PORTS: dict[type[Piece], type[Port]] = {}
"""Which port takes which kind of piece. Filled by `accepts`."""

PortT = TypeVar("PortT", bound="Port")


class CurrentContext(PerThread):
    """The context of the pass under way in this thread."""

    __slots__ = ()
    context: PassContext = PassContext()


class StackState:
    """What all ports of one stack share.

    limit:   the most positions, where the base looks them up in a table that ends.
    context: what pieces may know of the pass under way in this thread.
    shifts:  by how many positions each inlay's extra keys move the text back.
    drawing: the inlays with pieces that draw random numbers. relating: those with pieces that
             relate positions with each other.
    row_axis: where the rows of a batch are in what modules compute.
    """

    def __init__(self, chart: Chart, stack: Stack, routing: Routing, limit: int | None):
        self.chart = chart
        self.stack = stack
        self.routing = routing
        self.limit = limit
        self._current = CurrentContext()
        self.shifts: dict[str, int] = {}
        self.drawing: set[str] = set()
        self.relating: set[str] = set()
        self.row_axis = RowAxis(stack)
        self.ports: dict[type[Port], Port] = {}
        for kind in dict.fromkeys(PORTS.values()):
            self.port(kind)

    @property
    def context(self) -> PassContext:  # noqa: D102
        return self._current.context

    @context.setter
    def context(self, context: PassContext) -> None:
        self._current.context = context

    def port(self, kind: type[PortT]) -> PortT:
        """The stack's port of a class."""
        if kind not in self.ports:
            self.ports[kind] = kind(self)
        return self.ports[kind]  # type: ignore[return-value]

    def sites(self) -> set[str]:
        """The names of the sites at which any port tells rows apart."""
        return {name for port in self.ports.values() for name in port.row_sites()}

    def measure_rows(self, inputs: Mapping[str, Any]) -> None:
        """Measure where the rows of a batch are, before rows first have different inlays."""
        rows = main_input(inputs)
        if rows is None or len(set(self.routing.bound)) < 2 or torch.compiler.is_compiling():
            return
        if self.row_axis.covers(self.sites()):
            return
        with self.nothing_serves():
            self.row_axis.measure(self.sites(), dict(inputs), len(rows))

    @contextmanager
    def nothing_serves(self) -> Iterator[None]:
        """Inside, blocks compute what the bare base does."""
        bound = self.routing.bound
        try:
            self.routing.bound = ((),)
            yield
        finally:
            self.routing.bound = bound

    def shift(self, names: Names) -> int:
        """By how many positions these inlays' extra keys move the text back."""
        return sum(self.shifts.get(name, 0) for name in names)


class Port(ABC):
    """One way into one stack.

    label: what tables call it.
    """

    label: ClassVar[str] = "other"

    def __init__(self, state: StackState):
        self.state = state
        self.stack = state.stack
        self.routing = state.routing

    @classmethod  # noqa: B027 - some ports take their pieces anywhere
    def check(cls, method: str, site: Site, piece: Piece, chart: Chart) -> None:
        """Raise PortError where a piece of the method so called cannot act at this site."""

    @abstractmethod
    def add(self, name: str, site: Site, piece: Piece) -> None:
        """Let a piece of the inlay `name` in, after those that are there."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Take out the pieces of an inlay."""

    def row_sites(self) -> Iterable[str]:
        """The names of the sites at which the port tells rows apart by their first dimension."""
        return ()

    def receive(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Take out of the inputs what this port of another stack put into its output."""
        return inputs

    def enter(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Change the inputs of the stack, by name, before all blocks."""
        return inputs

    def leave(self, output: Any) -> Any:
        """Change the output of the stack, after all blocks."""
        return output


def accepts(*kinds: type[Piece]) -> Callable[[type[PortT]], type[PortT]]:
    """Register a port for kinds of pieces."""

    def register(port: type[PortT]) -> type[PortT]:
        PORTS.update(dict.fromkeys(kinds, port))
        return port

    return register


def port_for(piece: Piece) -> type[Port]:
    """The class of the port that takes a piece. Raises PortError for a kind without one."""
    for kind in type(piece).__mro__:
        if kind in PORTS:
            return PORTS[kind]
    raise PortError(
        f"no port takes a piece of type {type(piece).__name__}; build one of the kinds of "
        "inlay.core.piece, or register a port for it with inlay.runtime.port.accepts"
    )
