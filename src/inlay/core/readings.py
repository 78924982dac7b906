"""Readings: what a piece decides in a pass and can be asked about, such as the value of a gate."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, eq=False)
class Reading:
    """Numbers that a part of a piece computes in every pass, and that say something to a reader.

    what: what they are, such as "gate"; all pieces of a kind say the same.
    axis: what the single numbers belong to, such as "method" or "adapter".
    names: of the N numbers.
    module: the part whose output they are: `[B, T, N]` one for each position, `[B, 1, N]` one for
        each row, or `[N]` whatever the input. It is called as a module, `self.gate(x)`.
    """

    what: str
    axis: str
    names: tuple[str, ...]
    module: nn.Module


class Readable:
    """A mixin for pieces, and for pieces inside them, whose decisions `inlay inspect` can show.

        class Switch(Readable, OutputDelta):
            def readings(self):
                return [Reading("gate", "method", ("switch",), self.gate)]

    Nothing is computed or kept for it in a pass, unless somebody reads.
    """

    @abstractmethod
    def readings(self) -> Sequence[Reading]:
        """What can be read out of it."""
