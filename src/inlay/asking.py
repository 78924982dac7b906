"""Asking several inlays about the same texts, with the layers below their first pieces run once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from inlay.architectures.chart import Chart, Stack
from inlay.core.site import AFTER_BLOCKS
from inlay.errors import NamingError, RowsError, nearest
from inlay.handle import Inlay, attached, rows
from inlay.runtime.container import stack_hooks
from inlay.runtime.stack import StackHooks


def ask_all(model: PreTrainedModel, names: Sequence[str], **batch: Any) -> dict[str, ModelOutput]:
    """What the model computes for one batch with each of several inlays, in one forward pass.

    Layers below the first piece of all of these inlays compute the same for each, so they run
    once; the others run on a batch with every text once for each inlay (Rücklé et al., EMNLP
    2021, section 4). `drop_layers` makes more of them the same. Nothing is shared where a prompt
    or a prefix that shifts positions acts on the first layer.

    names: inlays that are attached. batch: what the model's forward takes, of B rows; no cache is
    used. Returns the model's outputs by name, each with B rows.

    Raises NamingError for an unknown name, RowsError where a name stands twice.
    """
    present = attached(model)
    for name in names:
        if name not in present:
            raise NamingError(f"no inlay is called {name!r}{nearest(name, present)}")
    if len(set(names)) < len(names) or not names:
        raise RowsError("ask_all needs the names of inlays, each once")
    handles = [present[name] for name in names]
    chart = handles[0].chart
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    if not tensors:
        raise RowsError("ask_all needs a batch, such as input_ids= and attention_mask=")
    count, times = len(tensors[0]), len(names)
    repeated = {key: _repeated(value, count, times) for key, value in batch.items()}
    requested = [name for name in names for _ in range(count)]
    with ExitStack() as context:
        context.enter_context(rows(model, requested))
        hooks = {entry.stack: entry for entry in stack_hooks(model)}
        for stack, layers in _shared_layers(chart, handles):
            context.enter_context(_run_once(hooks[stack], layers, count, times))
        output = model(**repeated, use_cache=False, return_dict=True)
    return {
        name: type(output)(
            **{key: _part(value, number * count, count, times) for key, value in output.items()}
        )
        for number, name in enumerate(names)
    }


def _shared_layers(chart: Chart, handles: Sequence[Inlay]) -> Iterator[tuple[Stack, int]]:
    """How many of its first layers each stack can run once.

    A decoder that reads an encoder shares none, unless no piece acts in the encoder.
    """
    placed = [entry for handle in handles for entry in handle.placed]
    for stack in chart.stacks:
        depth = len(stack.layers)
        layers = [
            (depth if entry.site.role in AFTER_BLOCKS else 0)
            if entry.site.layer is None
            else entry.site.layer
            for entry in placed
            if entry.site.stack == stack.name
        ]
        shared = min(layers, default=depth)
        if any(handle.shifts(stack.name) for handle in handles):
            shared = 0
        if shared:
            yield stack, shared
        if shared < depth:
            return


@contextmanager
def _run_once(stack: StackHooks, shared: int, count: int, times: int) -> Iterator[None]:
    """Let the first blocks of a stack read the first `count` rows, and the others all of them."""
    layers, axis = stack.stack.layers, stack.state.row_axis

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
            return _repeated(value, count, times)

        return _mapped(args, every), _mapped(kwargs, every)

    hooks = [
        layer.register_forward_pre_hook(
            narrow if number < shared else widen, with_kwargs=True, prepend=True
        )
        for number, layer in enumerate(layers)
    ]
    if shared == len(layers):

        def spread(module: nn.Module, args: tuple, output: Any) -> Any:
            if axis.under_way:
                return output
            return _mapped(output, lambda value: _repeated(value, count, times))

        hooks.append(layers[-1].register_forward_hook(spread))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The value with every tensor of two dimensions or more changed, in tuples and dicts too."""
    if isinstance(value, Tensor):
        return change(value) if value.dim() > 1 else value
    if type(value) is tuple:
        return tuple(_mapped(entry, change) for entry in value)
    if type(value) is dict:
        return {key: _mapped(entry, change) for key, entry in value.items()}
    return value


def _repeated(value: Any, count: int, times: int) -> Any:
    """Rows once for each inlay, those of the first inlay first: `[B, …]` -> `[N · B, …]`."""
    if not isinstance(value, Tensor) or not value.dim() or len(value) != count:
        return value
    return value.repeat(times, *([1] * (value.dim() - 1)))


def _part(value: Any, start: int, count: int, times: int) -> Any:
    """The rows of one inlay."""
    if isinstance(value, Tensor):
        whole = value.dim() and len(value) == count * times
        return value[start : start + count] if whole else value
    if isinstance(value, tuple):
        return tuple(_part(entry, start, count, times) for entry in value)
    return value
