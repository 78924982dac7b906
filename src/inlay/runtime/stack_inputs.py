"""Reading the inputs of a stack's pass, in whichever form they were given."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from inlay.architectures.chart import Stack


def by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a module's forward by their names."""
    if not args:
        return dict(kwargs)
    signature = inspect.signature(type(module).forward)
    names = [name for name in signature.parameters if name != "self"]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a module is given first, by place or by name."""
    return args[0] if args else next(iter(kwargs.values()))


def text_of(inputs: Mapping[str, Any]) -> Tensor | None:
    """The text of a pass, ids `[B, T]` or embeddings `[B, T, D]`; None where there is none."""
    ids = inputs.get("input_ids")
    return inputs.get("inputs_embeds") if ids is None else ids


def cache_of(inputs: Mapping[str, Any]) -> Cache | None:
    """The cache of a pass, if it has one."""
    cache = inputs.get("past_key_values")
    return cache if isinstance(cache, Cache) else None


def cached(inputs: Mapping[str, Any]) -> int:
    """How many positions the cache of a pass holds already."""
    cache = cache_of(inputs)
    return 0 if cache is None else int(cache.get_seq_length())


def padding_mask(inputs: Mapping[str, Any]) -> Tensor | None:
    """The padding mask `[B, S]` of a pass; None where there is none, or one of another form."""
    mask = inputs.get("attention_mask")
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def with_positions(stack: Stack, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with position ids counted from the padding mask, where none were given.

    Without them a left-padded row stands at other positions than the same row alone. A rotary base
    alone does not notice that; one with extra keys, which do not move along, does.
    """
    mask, text = padding_mask(inputs), text_of(inputs)
    if mask is None or text is None or not stack.takes("position_ids"):
        return inputs
    if inputs.get("position_ids") is not None:
        return inputs
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -text.shape[1] :]
    return {**inputs, "position_ids": positions + stack.position_start}


def last_state(output: Any) -> Tensor:
    """The last hidden state of a stack's output, `[B, T, D]`."""
    state: Tensor = output[0] if isinstance(output, tuple) else output.last_hidden_state
    return state


def tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in a stack's output, of whatever form it is; its last hidden state first."""
    if isinstance(output, Tensor):
        yield output
        return
    values = output.values() if isinstance(output, Mapping) else output
    for value in values if isinstance(values, Iterable) else ():
        if isinstance(value, Tensor):
            yield value


def replace_last_state(output: Any, state: Tensor) -> Any:
    """The stack's output with another last hidden state."""
    if isinstance(output, tuple):
        return (state, *output[1:])
    output["last_hidden_state"] = state
    return output


def arange(text: Tensor, start: int) -> Tensor:
    """Positions `[1, T]` of a text that begins at `start`."""
    return torch.arange(start, start + text.shape[1], device=text.device)[None]
