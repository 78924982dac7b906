"""The tokens port: trained vectors that stand wherever a text's token ids name them.

A base knows the ids 0 … V-1, the rows of its embedding table. Ids from V on are virtual tokens:
V is the first vector of a row's inlays, V + 1 the second. They are tokens in every other respect,
with positions, masks and a place in the cache; so templates work with any padding and any loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from inlay.architectures.chart import Stack
from inlay.core.piece import VirtualTokens
from inlay.errors import RowsError
from inlay.runtime.routing import Groups, Names, Routing


@dataclass(frozen=True)
class Asked:
    """The virtual tokens of a pass.

    numbers `[B, T]`: which of its row's virtual tokens stands at a position, from 1; 0 for none.
    groups: which inlays with virtual tokens serve the rows. of: the numbers of single pieces, as
    far as they were asked for.
    """

    numbers: Tensor
    groups: Groups
    of: dict[VirtualTokens, Tensor | None] = field(default_factory=dict)


class VirtualTokenPort:
    """The virtual tokens of all inlays in one stack. asked: those of the pass under way."""

    def __init__(self, stack: Stack, route: Routing):
        self.stack = stack
        self.route = route
        self.pieces: dict[str, list[VirtualTokens]] = {}
        self.asked: Asked | None = None

    @property
    def first(self) -> int:
        """V, the id of the first virtual token."""
        assert self.stack.embed is not None and isinstance(self.stack.embed.weight, Tensor)
        return len(self.stack.embed.weight)

    def enter(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The stack's inputs with vectors for ids, where any of these is virtual."""
        ids = inputs.get("input_ids")
        if not self.pieces or ids is None or not bool((ids >= self.first).any()):
            return inputs
        return {**inputs, "input_ids": None, "inputs_embeds": self.embed(ids)}

    def embed(self, ids: Tensor) -> Tensor:
        """Vectors for the ids of a batch `[B, T]`, served by the rows' own inlays: `[B, T, D]`."""
        groups = self.route.groups(len(ids), self.pieces) if self.pieces else None
        groups = groups or Groups(((),), None)
        self.asked = Asked(self._numbers(ids), groups) if self.pieces else None
        return self._embed(ids, groups)

    def embed_for(self, names: Names, ids: Tensor) -> Tensor:
        """Vectors for ids `[T]` that these inlays serve: `[T, D]`."""
        return self._embed(ids[None], Groups((self._here(names),), None))[0]

    def ask_for(self, names: Sequence[Names], ids: Tensor, before: Sequence[int]) -> None:
        """A pass of one row a group begins: so many other positions, and then `ids` `[T]`."""
        longest = max(before)
        rows = [F.pad(self._numbers(ids), (n, longest - n)) for n in before]
        groups = Groups(tuple(self._here(one) for one in names), tuple(range(len(names))))
        self.asked = Asked(torch.stack(rows), groups)

    def move(self, source: Tensor, extra: int) -> None:
        """The rows have been laid out anew, with `extra` others: `source` `[B, T + extra]`."""
        if self.asked is not None:
            wide = F.pad(self.asked.numbers, (0, extra))
            self.asked = Asked(wide.gather(1, source), self.asked.groups)

    def numbers(self, piece: VirtualTokens) -> Tensor | None:
        """Where one piece's virtual tokens stand in the pass under way, `[B, T]`: the n-th is n,
        all else is 0. None where there are none."""
        if self.asked is None:
            return None
        if piece not in self.asked.of:
            self.asked.of[piece] = self._own(piece, self.asked.numbers, self.asked.groups)
        return self.asked.of[piece]

    def _own(self, piece: VirtualTokens, numbers: Tensor, groups: Groups) -> Tensor | None:
        starts = [self._start(names, piece) for names in groups.names]
        if all(start is None for start in starts):
            return None
        own = torch.tensor([-1 if start is None else start for start in starts])
        own = own.to(numbers.device)
        rows = own if groups.group is None else own[groups.index(numbers.device)]
        moved = numbers - rows[:, None]
        return moved.where((rows[:, None] >= 0) & (moved > 0) & (moved <= piece.length), 0)

    def _start(self, names: Names, piece: VirtualTokens) -> int | None:
        """How many virtual tokens of a row come before a piece's; None where it has none of it."""
        start = 0
        for name in names:
            for one in self.pieces[name]:
                if one is piece:
                    return start
                start += one.length
        return None

    def _here(self, names: Names) -> Names:
        return tuple(name for name in names if name in self.pieces)

    def _numbers(self, ids: Tensor) -> Tensor:
        return torch.where(ids >= self.first, ids - self.first + 1, 0)

    def _embed(self, ids: Tensor, groups: Groups) -> Tensor:
        assert self.stack.embed is not None
        if not self.pieces:
            return self.stack.embed(ids)
        first = self.first
        virtual = ids >= first
        embeds = self.stack.embed(ids.masked_fill(virtual, 0))
        if not bool(virtual.any()):
            return embeds
        tables = [
            torch.cat([piece() for name in names for piece in self.pieces[name]]) if names else None
            for names in groups.names
        ]
        counts = [0 if table is None else len(table) for table in tables]
        number = torch.zeros(1, dtype=torch.long, device=ids.device)
        number = number if groups.group is None else groups.index(ids.device)
        asked = self._numbers(ids)
        known = torch.tensor(counts, device=ids.device)[number]
        if bool((asked > known[:, None]).any()):
            raise RowsError(
                f"a text names {int(asked.max())} virtual tokens, and the inlays of its row have "
                f"{int(known.min())}; attach one with as many as the template, or use rows"
            )
        width = embeds.shape[-1]
        stacked = torch.stack(
            [
                F.pad(embeds.new_zeros(0, width) if t is None else t.to(embeds.dtype),
                      (0, 0, 0, max(counts) - n))
                for t, n in zip(tables, counts, strict=True)
            ]
        )  # fmt: skip
        index = (asked - 1).clamp(min=0)[..., None].expand(-1, -1, width)
        spread = stacked[number].expand(len(ids), -1, -1)
        return torch.where(virtual[..., None], spread.gather(1, index), embeds)
