"""The tap port: a hook on a module that lets pieces see x and y and change them.

Classes, parameter names and `forward` stay as they are. A hook is a bound method, so that a deep
copy of the base gets a port of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from inlay.core.piece import InputMap, OutputDelta, Piece, VirtualTokenDelta
from inlay.core.site import Site
from inlay.errors import RowsError
from inlay.runtime.routing import Groups, Routing
from inlay.runtime.virtual_tokens import VirtualTokenPort


class ModuleHooks:
    """All pieces of all inlays at one site. tokens: the virtual tokens of its stack."""

    def __init__(self, site: Site, route: Routing, tokens: VirtualTokenPort):
        self.site = site
        self.route = route
        self.tokens = tokens
        self.at_exit: dict[str, list[OutputDelta]] = {}
        self.at_entry: dict[str, list[InputMap]] = {}
        self.at_tokens: dict[str, list[VirtualTokenDelta]] = {}
        self._x: Tensor | None = None
        self._hooks: list[RemovableHandle] = []

    def add(self, name: str, piece: Piece) -> None:
        """Let a piece of inlay `name` in, behind those that are there."""
        if isinstance(piece, InputMap):
            self.at_entry.setdefault(name, []).append(piece)
        elif isinstance(piece, VirtualTokenDelta):
            self.at_tokens.setdefault(name, []).append(piece)
        else:
            assert isinstance(piece, OutputDelta)
            self.at_exit.setdefault(name, []).append(piece)
        self._hook()

    def drop(self, name: str) -> bool:
        """Take out an inlay's pieces. Returns whether the port is empty now."""
        self.at_entry.pop(name, None)
        self.at_exit.pop(name, None)
        self.at_tokens.pop(name, None)
        self._hook()
        return not self.at_entry and not self.at_exit and not self.at_tokens

    def _hook(self) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks = []
        host, enter = self.site.host, self.site.enter
        if self.at_entry:
            self._hooks.append(host.register_forward_pre_hook(self._before, prepend=True))
        if self.at_exit or self.at_tokens:
            self._hooks.append(host.register_forward_hook(self._after, prepend=True))
            if enter is not None:
                self._hooks.append(enter.register_forward_pre_hook(self._entered, prepend=True))

    def _entered(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._x = args[0]

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        groups = self.route.groups(x.shape[0], self.at_entry)
        if groups is None:
            return args
        return (mixed(groups, (x,), lambda names, x: self._entry(names, x)), *args[1:])

    def _entry(self, names: tuple[str, ...], x: Tensor) -> Tensor:
        for name in names:
            for piece in self.at_entry[name]:
                x = piece(x)
        return x

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        whole = output[0] if isinstance(output, tuple) else output
        x = args[0] if self.site.enter is None else self._x
        self._x = None
        assert x is not None
        if self.site.role == "head" and whole.dim() < 3 and len(self.route.bound) > 1:
            raise RowsError(
                "a head that reads chosen positions cannot tell their rows apart; "
                "give every row the same inlay, or pass the head whole rows"
            )
        groups = self.route.groups(whole.shape[0], self.at_exit)
        placed = self._placed()
        if groups is None and not placed:
            return output
        part = self.site.part
        y = whole if part is None else part.take(whole)
        if groups is not None:
            y = mixed(groups, (x, y), lambda names, x, y: self._exit(names, x, y))
        for piece, number in placed:
            y = piece(y, number)
        y = y if part is None else part.put(whole, y)
        return (y, *output[1:]) if isinstance(output, tuple) else y

    def _placed(self) -> list[tuple[VirtualTokenDelta, Tensor]]:
        """The pieces whose virtual tokens stand in the pass under way, and where these are."""
        deep = [piece for pieces in self.at_tokens.values() for piece in pieces]
        found = [(piece, self.tokens.numbers(piece.tokens)) for piece in deep]
        return [(piece, number) for piece, number in found if number is not None]

    def _exit(self, names: tuple[str, ...], x: Tensor, y: Tensor) -> Tensor:
        for name in names:
            for piece in self.at_exit[name]:
                y = piece(x, y)
        return y


def mixed(groups: Groups, tensors: tuple[Tensor, ...], run: Callable[..., Tensor]) -> Tensor:
    """`run(names, *rows)` for every group of rows, put back in order; a group with no names keeps
    its rows of the last tensor as they are."""
    if groups.group is None:
        return run(groups.names[0], *tensors)
    made = []
    runs = list(_runs(groups.group))
    if len(runs) == len(groups.names):  # each group is one run of neighbouring rows: no copying
        for number, start, stop in runs:
            rows = tuple(tensor[start:stop] for tensor in tensors)
            names = groups.names[number]
            made.append(run(names, *rows) if names else rows[-1])
        return torch.cat(made)
    numbers = groups.index(tensors[-1].device)
    order = torch.argsort(numbers, stable=True)
    for number, names in enumerate(groups.names):
        chosen = (numbers == number).nonzero().squeeze(1)
        rows = tuple(tensor.index_select(0, chosen) for tensor in tensors)
        made.append(run(names, *rows) if names else rows[-1])
    return torch.cat(made).index_select(0, torch.argsort(order))


def _runs(group: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    start = 0
    for stop in range(1, len(group) + 1):
        if stop == len(group) or group[stop] != group[start]:
            yield group[start], start, stop
            start = stop
