"""Asking several inlays about the same texts, with the layers below their first pieces run once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from inlay.errors import NamingError, RowsError, nearest
from inlay.handle import attached, rows
from inlay.runtime.container import container_of
from inlay.runtime.shared_layers import repeated, run_once, untouched_layers


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
    container = container_of(model)
    assert container is not None
    pieces = [container.pieces(name) for name in names]
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    if not tensors:
        raise RowsError("ask_all needs a batch, such as input_ids= and attention_mask=")
    count, times = len(tensors[0]), len(names)
    all_rows = {key: repeated(value, count, times) for key, value in batch.items()}
    requested = [name for name in names for _ in range(count)]
    with ExitStack() as context:
        context.enter_context(rows(model, requested))
        for stack, layers in untouched_layers(container.chart, pieces):
            context.enter_context(run_once(model, stack, layers, count, times))
        output = model(**all_rows, use_cache=False, return_dict=True)
    return {
        name: type(output)(
            **{key: _part(value, number * count, count, times) for key, value in output.items()}
        )
        for number, name in enumerate(names)
    }


def _part(value: Any, start: int, count: int, times: int) -> Any:
    """The rows of one inlay."""
    if isinstance(value, Tensor):
        whole = value.dim() and len(value) == count * times
        return value[start : start + count] if whole else value
    if isinstance(value, tuple):
        return tuple(_part(entry, start, count, times) for entry in value)
    return value
