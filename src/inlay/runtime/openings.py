"""Openings: how many tokens all rows of a batch begin with, counted where that costs no waiting.

The count is a number that the CPU must know, because it decides what runs (`shared_prefix`). For
tensors on the CPU that is nothing. Asked of a device it would make the CPU wait in every pass for
all that the device has to do before. So there are three ways to it:

    tensors on the CPU                   counted in the pass
    a loop that made the batch on the    `known_openings`: counted once a batch, on the CPU copy,
    CPU and moved it to a device             and handed on
    anything else                        not looked for: the rows run whole
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from inlay.runtime.stack_inputs import leading_padding, readable

SHORTEST = 8
"""An opening of fewer tokens is not worth a pass of its own."""

Copies = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
"""The inputs of one pass on the CPU, and the same on the base's device."""


@dataclass(frozen=True, eq=False)
class KnownOpening:
    """The opening of a batch whose CPU copy was looked at.

    ids, mask: the batch on its device, `[B, T]`; no other tensors are meant. length: C.
    """

    ids: Tensor
    mask: Tensor | None
    length: int


class Openings:
    """What one stack knows of openings.

    start: the position id of a text's first token. absolute: the base looks positions up in a
    table. known: what `known_openings` hands on.
    """

    def __init__(self, start: int, absolute: bool):
        self.start = start
        self.absolute = absolute
        self.known: tuple[KnownOpening, ...] = ()

    def length(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> int:
        """C, how many tokens all rows begin with; at least one is left to each row.

        ids, mask, positions: `[B, T]` each. 0 where that is not known, and a device would have to
        be asked.
        """
        for known in self.known:
            if known.ids is ids and known.mask is mask and positions is None:
                return known.length
        worth_asking = any(known.length >= SHORTEST for known in self.known)
        if not (readable(ids) or worth_asking):
            return 0
        return self.counted(ids, mask, positions)

    def counted(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> int:
        """The same, counted now."""
        batch, length = ids.shape
        shortest = length
        place = torch.arange(length, device=ids.device)
        if mask is not None:
            lead = leading_padding(mask)
            if positions is None and self.absolute and bool(lead.any()):
                return 0
            index = (place + lead).clamp(max=length - 1)
            ids, mask = ids.gather(1, index), mask.gather(1, index) * (place + lead < length)
            shortest = int(mask.sum(-1).min())
            if positions is not None:
                positions = positions.expand(batch, -1).gather(1, index)
        same = (ids == ids[:1]).all(0)
        if mask is not None:
            same = same & (mask > 0).all(0)
        if positions is not None:
            same = same & (positions == place + self.start).all(0)
        return min(int(same.long().cumprod(0).sum()), shortest - 1)


@contextmanager
def known_openings(openings: Sequence[Openings], batches: Sequence[Copies]) -> Iterator[None]:
    """Inside, passes over these batches know their openings without asking the device.

    Passes over tensors that were made of them, such as the first one of `generate`, ask the device
    where the copies on the CPU show that it is worth while.

    openings: those of the base's stacks. batches: what the base reads, on the CPU and on its
    device, each by the names of its arguments.
    """
    before = [stack.known for stack in openings]
    try:
        for stack in openings:
            stack.known = tuple(_known(stack, *copies) for copies in batches)
        yield
    finally:
        for stack, known in zip(openings, before, strict=True):
            stack.known = known


def _known(
    stack: Openings, host: Mapping[str, Tensor], device: Mapping[str, Tensor]
) -> KnownOpening:
    ids, mask = host["input_ids"], host.get("attention_mask")
    return KnownOpening(
        device["input_ids"], device.get("attention_mask"), stack.counted(ids, mask, None)
    )
