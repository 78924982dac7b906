"""Container: the one child that a base has while inlays are attached."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from inlay.architectures.chart import Chart
from inlay.architectures.logits import output_matrix
from inlay.architectures.paths import CHILD
from inlay.core.piece_set import PieceSet
from inlay.runtime.gate import Gate, GateHooks
from inlay.runtime.head_input import ContiguousHeadInput
from inlay.runtime.openings import NOTE, Openings
from inlay.runtime.reminder import Reminder
from inlay.runtime.routing import Routing
from inlay.runtime.stack import StackHooks

_CHANGES = threading.RLock()
"""Held by whoever puts a container in or takes one out, so that two threads never do at once."""


class Container(nn.Module):
    """Every attached inlay's pieces, and the hooks through which they act.

    Because it is a child like any other, `model.to`, `model.train`, every optimiser,
    `transformers.Trainer`, deep copies and pickling treat the pieces as one expects.

    sets: the pieces of each inlay, by its name. trained: the base's own parameters that required
    gradients before anything was attached. reminders: of each inlay, for loops that leave out its
    penalty or schedule. gate: keeps passes and changes of what is attached apart. kept_layouts: see
    `core.quantised.keep_layout`.
    """

    def __init__(self, chart: Chart):
        super().__init__()
        self.sets = nn.ModuleDict()
        self.chart = chart
        self.routing = Routing()
        self.trained = [n for n, p in chart.base.named_parameters() if p.requires_grad]
        limit = chart.max_length(chart.base) if chart.family.position_table else None
        decoder = chart.decoder
        self.stacks = [
            StackHooks(chart, stack, self.routing, limit, trims=decoder is None or i > 0)
            for i, stack in enumerate(chart.stacks)
        ]
        if decoder is not None:
            self.stack(decoder.name).upstream = self.stacks[0]
        self.reminders: dict[str, Reminder] = {}
        self.kept_layouts: list[nn.Module] = []
        head = output_matrix(chart.base)
        inputs = [] if head is None else [ContiguousHeadInput(head)]
        self.gate = Gate()
        entrances = [
            GateHooks(module, self.gate, module is chart.base, self._begin)
            for module in dict.fromkeys((chart.base, *(stack.module for stack in chart.stacks)))
        ]
        self.hooks: list[StackHooks | ContiguousHeadInput | GateHooks] = [
            *self.stacks,
            *inputs,
            *entrances,  # last, and so the first to be called
        ]

    def _begin(self, arguments: dict[str, Any]) -> None:
        """Bind the rows of a pass that begins, and read the note that its batch may have."""
        self.routing.bind()
        note = arguments.pop(NOTE, None)
        for stack in self.stacks:
            if stack.prefix is not None:
                stack.prefix.openings.read(note, arguments)

    def stack(self, name: str) -> StackHooks:
        """The hooks of the stack of that name."""
        return next(stack for stack in self.stacks if stack.stack.name == name)

    def pieces(self, name: str) -> PieceSet:
        """The pieces of an inlay."""
        pieces = self.sets[name]
        assert isinstance(pieces, PieceSet)
        return pieces


def container_of(model: nn.Module) -> Container | None:
    """The child of a base, or of the backbone inside it; None where nothing is attached."""
    modules = [model, model.base_model] if isinstance(model, PreTrainedModel) else [model]
    for module in modules:
        child = module._modules.get(CHILD)
        if isinstance(child, Container):
            return child
    return None


@contextmanager
def changing(model: nn.Module) -> Iterator[None]:
    """Inside, this thread alone changes what is attached, and no other is in a pass.

    Raises BusyError where the pass of another thread does not end.
    """
    with _CHANGES:
        container = container_of(model)
        with nullcontext() if container is None else container.gate.change():
            yield


def stack_hooks(model: nn.Module) -> list[StackHooks]:
    """The hooks of a base's stacks; none where nothing is attached."""
    container = container_of(model)
    return [] if container is None else container.stacks


def openings_of(model: nn.Module) -> list[Openings]:
    """What stacks know of the openings of their rows; of those alone in which these run once."""
    return [hooks.prefix.openings for hooks in stack_hooks(model) if hooks.prefix is not None]
