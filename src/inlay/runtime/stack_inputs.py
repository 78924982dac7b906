"""Reading the inputs of a stack's pass, in whichever form they were given.

Nothing here asks a device for numbers: a pass that does waits for all that the device has to do
before, and cannot be compiled in one piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from inlay.architectures.chart import Stack

HOST = "cpu"
"""The kind of device whose numbers are read without waiting."""

LENGTH_NOTED = "inlay_length_noted"
"""The attribute under which a static cache keeps the version that its length had after a pass."""


def by_name(stack: Stack, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a stack's forward by their names."""
    return {**dict(zip(stack.arguments, args, strict=False)), **kwargs}


def readable(tensor: Tensor) -> bool:
    """Whether the numbers in a tensor can be looked at without waiting for a device.

    While a pass is compiled there are no numbers.
    """
    return tensor.device.type == HOST and not torch.compiler.is_compiling()


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a module is given first, by place or by name."""
    return args[0] if args else next(iter(kwargs.values()))


def text_of(inputs: Mapping[str, Any]) -> Tensor | None:
    """The text of a pass, ids `[B, T]` or embeddings `[B, T, D]`; None where there is none."""
    ids = inputs.get("input_ids")
    return inputs.get("inputs_embeds") if ids is None else ids


NUMBERS = ("inputs_embeds", "pixel_values", "input_features", "input_values")
"""What a stack may be given as floating-point numbers."""


def main_input(inputs: Mapping[str, Any]) -> Tensor | None:
    """What a pass reads, ids or numbers, one row after another; None where it is neither."""
    names = ("input_ids", *NUMBERS)
    return next((inputs[name] for name in names if inputs.get(name) is not None), None)


def cache_of(inputs: Mapping[str, Any]) -> Cache | None:
    """The cache of a pass, if it has one."""
    cache = inputs.get("past_key_values")
    return cache if isinstance(cache, Cache) else None


def cached(inputs: Mapping[str, Any]) -> int | Tensor:
    """How many positions the cache of a pass holds already; a tensor for static caches."""
    cache = cache_of(inputs)
    return 0 if cache is None else _length(cache)


def continues(inputs: Mapping[str, Any]) -> bool:
    """Whether the cache of a pass holds positions already.

    The length of a static cache is a number on its device. It is read only where someone else
    changed it since the last pass (`note_length`), so not from one token to the next. A compiled
    pass takes a static cache for one that was begun if its memory is there: `generate` makes the
    first pass without compiling, into a new cache.
    """
    length = cached(inputs)
    if not isinstance(length, Tensor):
        return length > 0
    if torch.compiler.is_compiling():
        return True
    noted = vars(inputs["past_key_values"]).get(LENGTH_NOTED)
    return (noted is not None and noted == _version(length)) or bool(length > 0)


def note_length(cache: Cache) -> None:
    """Note after a pass that a static cache holds positions."""
    if torch.compiler.is_compiling():
        return
    length = _length(cache)
    if isinstance(length, Tensor):
        setattr(cache, LENGTH_NOTED, _version(length))


def _length(cache: Cache) -> int | Tensor:
    length: Any = cache.get_seq_length()  # said to be an int, which it is not in a static cache
    return length


def _version(length: Tensor) -> int | None:
    """How often a tensor was changed; None where torch does not count that."""
    return None if length.is_inference() else length._version


def padding_mask(inputs: Mapping[str, Any]) -> Tensor | None:
    """The padding mask `[B, S]` of a pass; None where there is none, or one of another form."""
    mask = inputs.get("attention_mask")
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def leading_padding(mask: Tensor) -> Tensor:
    """How many positions of padding every row of a mask `[B, S]` begins with, `[B, 1]`."""
    return (mask.cumsum(-1) == 0).sum(-1, keepdim=True)


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


def first_output(output: Any) -> Any:
    """What a module computes: its output, or the first of several."""
    return output[0] if isinstance(output, tuple | list) else output


def replace_first_output(output: Any, first: Tensor) -> Any:
    """The output of a module with another first one."""
    if isinstance(output, list):
        return [first, *output[1:]]
    return (first, *output[1:]) if isinstance(output, tuple) else first


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
    if isinstance(output, Tensor):
        return state
    if isinstance(output, tuple):
        return (state, *output[1:])
    output["last_hidden_state"] = state
    return output


def arange(text: Tensor, start: int | Tensor) -> Tensor:
    """Positions `[1, T]` of a text that begins at `start`."""
    return (torch.arange(text.shape[1], device=text.device) + start)[None]
