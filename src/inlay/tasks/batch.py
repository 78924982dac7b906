"""Batch: rows as tensors, what the model reads apart from what only the task reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one task, padded, as tensors.

    A task subclasses it with what its loss and its predictions need: positions, labels, targets.
    Such a member may also be a batch itself, or a tuple or a dictionary of tensors and batches.

    inputs: exactly what the model reads, by the names of its arguments, `[B, T]` each.
    """

    inputs: dict[str, Tensor]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch with all its tensors on a device."""
        members = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self, **{name: _moved(value, device, non_blocking) for name, value in members.items()}
        )

    def batches(self) -> Iterator[Batch]:
        """Itself and every batch in it, each as often and in the order in which it stands there."""
        yield self
        for field in fields(self):
            yield from _batches(getattr(self, field.name))

    def __len__(self) -> int:
        """How many rows it has."""
        return len(self.inputs["input_ids"])


def _moved(value: Any, device: torch.device | str, non_blocking: bool) -> Any:
    if isinstance(value, Tensor | Batch):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, dict):
        return {name: _moved(part, device, non_blocking) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_moved(part, device, non_blocking) for part in value)
    return value


def _batches(value: Any) -> Iterator[Batch]:
    if isinstance(value, Batch):
        yield from value.batches()
    elif isinstance(value, dict | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _batches(part)
