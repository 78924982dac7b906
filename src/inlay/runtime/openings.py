"""Openings: how many tokens all rows of a batch begin with, counted where that costs no waiting.

The count is a number that the CPU must know, because it decides what runs (`shared_prefix`). For
tensors on the CPU that is nothing. Asked of a device it would make the CPU wait in every pass for
all that the device has to do before. So there are four ways to it:

    tensors on the CPU                   counted in the pass
    `fit`, which makes the batch on      `known_openings`: counted once a batch, on the CPU copy,
    the CPU and moves it to a device         and handed on
    another loop, such as `Trainer`      `note_opening`: counted where the batch is collated, and
                                             written down in the batch
    anything else                        not looked for: the rows run whole
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from inlay.core.per_thread import PerThread
from inlay.errors import DataError
from inlay.runtime.stack_inputs import leading_padding, readable

SHORTEST = 8
"""An opening of fewer tokens is not worth a pass of its own."""

NOTE = "inlay_opening"
"""The name under which a batch holds the note of its opening."""

InputsT = TypeVar("InputsT", bound=MutableMapping[str, Any])

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


class _Noted(PerThread):
    """The opening that the batch of the pass under way in this thread has a note of."""

    __slots__ = ()
    opening: KnownOpening | None = None


class Openings:
    """What one stack knows of openings.

    start: the position id of a text's first token. absolute: the base looks positions up in a
    table. known: what `known_openings` hands on.
    """

    def __init__(self, start: int, absolute: bool):
        self.start = start
        self.absolute = absolute
        self.known: tuple[KnownOpening, ...] = ()
        self._noted = _Noted()

    def read(self, note: Tensor | None, arguments: Mapping[str, Any]) -> None:
        """Take the note of `note_opening` for the pass that begins in this thread.

        arguments: of the base, by name.
        """
        ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
        if note is None or ids is None:
            self._noted.opening = None
            return
        _, length, padded, _ = note.shape
        length = 0 if padded and self.absolute else length
        self._noted.opening = KnownOpening(ids, mask, length)

    def length(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> int:
        """C, how many tokens all rows begin with; at least one is left to each row.

        ids, mask, positions: `[B, T]` each. 0 where that is not known, and a device would have to
        be asked.
        """
        noted = () if self._noted.opening is None else (self._noted.opening,)
        for known in (*noted, *self.known):
            if known.ids is ids and known.mask is mask and positions is None:
                return known.length
        worth_asking = any(known.length >= SHORTEST for known in self.known)
        if not (readable(ids) or worth_asking):
            return 0
        return self.counted(ids, mask, positions)

    def counted(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> int:
        """The same, counted now."""
        if mask is not None and positions is None and self.absolute and _padded_in_front(mask):
            return 0
        return _count(ids, mask, positions, self.start)


def note_opening(inputs: InputsT) -> InputsT:
    """A batch, with a note of how many tokens all its rows begin with.

    What all rows begin with (an instruction, worked examples) runs once instead of once a row. On
    the CPU that is seen in each pass; on an accelerator a pass would have to wait to see it, so a
    loop says it there, while the batch is still on the CPU:

        batch = inlay.note_opening(collate(rows))
        loss = model(**{name: tensor.to("cuda") for name, tensor in batch.items()}).loss

        Trainer(..., data_collator=lambda rows: inlay.note_opening(collate(rows)))

    The note is a tensor of no numbers, `[B, C, 0 or 1, 0]`, whose shape says C and whether any row
    begins with padding: it moves, is pinned, sent and cut like the rest of the batch. A base with
    inlays takes it out of its arguments; one without any does not know it.

    inputs: what the base reads, by the names of its arguments, on the CPU. A batch without
    `input_ids`, or with `position_ids` of its own, gets no note.

    Raises DataError for a batch that is on a device already.
    """
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not isinstance(ids, Tensor) or inputs.get("position_ids") is not None:
        return inputs
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        return inputs
    if ids.device.type != "cpu":
        raise DataError(
            f"the batch is on {ids.device} already, where looking at its rows makes the CPU wait; "
            "call note_opening where the batch is collated"
        )
    padded = mask is not None and _padded_in_front(mask)
    noted = copy.copy(inputs)
    noted[NOTE] = torch.empty(len(ids), _count(ids, mask, None, 0), int(padded), 0)
    return noted


def _padded_in_front(mask: Tensor) -> bool:
    """Whether any row of a mask `[B, S]` begins with padding; asks its device."""
    return bool(leading_padding(mask).any())


def _count(ids: Tensor, mask: Tensor | None, positions: Tensor | None, start: int) -> int:
    """How many tokens all rows begin with, one less than the shortest row at most.

    start: the position id of a text's first token, where positions are given.
    """
    batch, length = ids.shape
    shortest = length
    place = torch.arange(length, device=ids.device)
    if mask is not None:
        lead = leading_padding(mask)
        index = (place + lead).clamp(max=length - 1)
        ids, mask = ids.gather(1, index), mask.gather(1, index) * (place + lead < length)
        shortest = int(mask.sum(-1).min())
        if positions is not None:
            positions = positions.expand(batch, -1).gather(1, index)
    same = (ids == ids[:1]).all(0)
    if mask is not None:
        same = same & (mask > 0).all(0)
    if positions is not None:
        same = same & (positions == place + start).all(0)
    return max(0, min(int(same.long().cumprod(0).sum()), shortest - 1))


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
