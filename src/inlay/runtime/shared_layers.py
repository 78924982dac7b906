"""Layers that compute the same for several copies of the same rows, run once for all of them.

When several inlays are asked about the same texts, the batch holds every text once for each inlay,
and the layers below the first piece would compute each of them several times:

    rows of the batch     A1 A2   B1 B2        text 1 and 2, for the inlays A and B
    below the first piece 1  2                 narrowed to the first copy
    from there on         A1 A2   B1 B2        widened again
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from inlay.architectures.chart import Chart, Stack
from inlay.core.piece import HeadPiece, SideEncoder
from inlay.core.piece_set import PieceSet
from inlay.core.site import AFTER_BLOCKS
from inlay.runtime.container import stack_hooks

BESIDE = (HeadPiece, SideEncoder)
"""Kinds of pieces that change nothing of what the base's own decoder reads of its encoder."""


def untouched_layers(chart: Chart, pieces: Sequence[PieceSet]) -> Iterator[tuple[Stack, int]]:
    """How many of its first layers compute in each stack what they compute without these pieces.

    Stacks without such layers are left out. So is a decoder whose encoder has pieces that change
    what the decoder reads.
    """
    for stack in chart.stacks:
        placed = [
            entry for part in pieces for entry in part.placed if entry.site.stack == stack.name
        ]
        depth = len(stack.layers)
        layers = [
            (depth if entry.site.role in AFTER_BLOCKS else 0)
            if entry.site.layer is None
            else entry.site.layer
            for entry in placed
        ]
        untouched = min(layers, default=depth)
        if any(part.shift(stack.name) for part in pieces):
            untouched = 0
        if untouched:
            yield stack, untouched
        if untouched < depth or not all(isinstance(entry.piece, BESIDE) for entry in placed):
            return


@contextmanager
def run_once(model: nn.Module, stack: Stack, shared: int, count: int, times: int) -> Iterator[None]:
    """Inside, the first layers of a stack run on the first rows, and the others on all of them.

    The rows of a batch are the same `count` texts, `times` over.

    shared: how many layers run once.
    """
    hooks = next(entry for entry in stack_hooks(model) if entry.stack is stack)
    layers, axis = stack.layers, hooks.state.row_axis

    def narrow(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        if axis.under_way:  # rows of its own, on which it is measured where rows are
            return args, kwargs

        def first(value: Tensor) -> Tensor:
            return value[:count] if len(value) == count * times else value

        return _mapped(args, first), _mapped(kwargs, first)

    def widen(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        """Repeat what the shared blocks have handed on, such as the bias of positions in T5."""
        if axis.under_way:
            return args, kwargs

        def every(value: Tensor) -> Tensor:
            return repeated(value, count, times)

        return _mapped(args, every), _mapped(kwargs, every)

    handles = [
        layer.register_forward_pre_hook(
            narrow if number < shared else widen, with_kwargs=True, prepend=True
        )
        for number, layer in enumerate(layers)
    ]
    if shared == len(layers):

        def spread(module: nn.Module, args: tuple, output: Any) -> Any:
            if axis.under_way:
                return output
            return _mapped(output, lambda value: repeated(value, count, times))

        handles.append(layers[-1].register_forward_hook(spread))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The value with every tensor of two dimensions or more changed, in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return change(value) if value.dim() > 1 else value
    if type(value) is tuple or type(value) is list:
        return type(value)(_mapped(entry, change) for entry in value)
    if type(value) is dict:
        return {key: _mapped(entry, change) for key, entry in value.items()}
    return value


def repeated(value: Any, count: int, times: int) -> Any:
    """Rows once for each inlay, those of the first inlay first: `[B, …]` -> `[N · B, …]`."""
    if not isinstance(value, Tensor) or not value.dim() or len(value) != count:
        return value
    return value.repeat(times, *([1] * (value.dim() - 1)))
