"""What a base holds while inlays are in it: one child, with the pieces and the ports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from inlay.architectures.chart import Chart
from inlay.core.piece import ExtraKV, Piece, SharedModule
from inlay.core.site import Site
from inlay.runtime.module_hooks import ModuleHooks
from inlay.runtime.routing import Routing
from inlay.runtime.stack import StackHooks

if TYPE_CHECKING:
    from inlay.handle import Inlay

CHILD = "inlays"
"""The name of the one child that a base has while inlays are attached."""


class PieceSet(nn.Module):
    """The pieces of one inlay, and what they share. Keys are `site/number of the method`."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces = nn.ModuleDict()
        self.shared = nn.ModuleDict()
        self.sites: dict[str, Site] = {}

    def add(self, site: Site, number: int, piece: Piece) -> None:
        """One piece of method `number` at a site."""
        key = f"{site.name}/{number}"
        self.sites[key] = site
        self.pieces[_slot(key)] = piece

    def share(self, key: str, once: SharedModule) -> None:
        """A module that several pieces of one method read."""
        self.shared[_slot(key)] = once

    def onces(self) -> list[SharedModule]:
        """The shared modules, which the doors renew."""
        return [one for one in self.shared.values() if isinstance(one, SharedModule)]

    def shift(self, stack: str) -> int:
        """By how many positions the keys of one stack move its text back."""
        each: dict[str, int] = {}
        for key, site in self.sites.items():
            piece = self.pieces[_slot(key)]
            if isinstance(piece, ExtraKV) and site.stack == stack:
                each[key.rsplit("/", 1)[1]] = piece.shift
        return sum(each.values())

    def items(self) -> Iterator[tuple[str, Site, Piece]]:
        """(key, site, piece) of every piece, in order."""
        for key, site in self.sites.items():
            piece = self.pieces[_slot(key)]
            assert isinstance(piece, Piece)
            yield key, site, piece


class ContiguousHeadInput:
    """Hands a frozen language-model head its states in one piece.

    `generate` cuts the last position out of a batch, which leaves gaps in memory; torch then
    copies a weight that does not learn once for every row (LOG.md).
    """

    def __init__(self, head: nn.Module):
        self.head = head
        self._hook: RemovableHandle | None = None

    def hang(self) -> None:
        """Put the hook on."""
        self._hook = self.head.register_forward_pre_hook(self._before)

    def unhang(self) -> None:
        """Take the hook off."""
        if self._hook is not None:
            self._hook.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].contiguous(), *args[1:])


class Container(nn.Module):
    """The child: every attached inlay's pieces, and the ports through which they act."""

    def __init__(self, chart: Chart):
        super().__init__()
        self.sets = nn.ModuleDict()
        self.handles: dict[str, Inlay] = {}
        self.chart = chart
        self.route = Routing()
        self.taps: dict[str, ModuleHooks] = {}
        self.learning = [n for n, p in chart.base.named_parameters() if p.requires_grad]
        limit = chart.max_length(chart.base) if chart.family.absolute else None
        several = len(chart.stacks) > 1
        self.doors = [
            StackHooks(chart, stack, self.route, limit, several is False or i > 0)
            for i, stack in enumerate(chart.stacks)
        ]
        if several:
            self.doors[1].upstream = self.doors[0]
        head = chart.base.get_output_embeddings()
        self.sills = [] if head is None else [ContiguousHeadInput(head)]

    @property
    def frames(self) -> list[StackHooks | ContiguousHeadInput]:
        """Everything that hangs on the base as a whole."""
        return [*self.doors, *self.sills]

    def door(self, stack: str) -> StackHooks:
        """The door of a stack."""
        return next(door for door in self.doors if door.stack.name == stack)


def container_of(model: nn.Module) -> Container | None:
    """The child of a base, or of the backbone inside it; None where nothing is attached."""
    for module in (model, getattr(model, "base_model", None)):
        root = module._modules.get(CHILD) if module is not None else None
        if isinstance(root, Container):
            return root
    return None


def _slot(key: str) -> str:
    return key.replace(".", ":")  # a module's name may not hold a dot
