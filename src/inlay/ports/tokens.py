"""The tokens port: trained vectors that stand wherever a text's token ids name them.

A base knows the ids 0 … V-1, the rows of its embedding table. Ids from V on are virtual tokens:
V is the first vector of a row's inlays, V + 1 the second. They are tokens in every other respect,
with positions, masks and a place in the cache; so templates work with any padding and any loop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from inlay.chart import Stack
from inlay.errors import RowsError
from inlay.piece import Tokens
from inlay.route import Groups, Names, Route


class TokensPort:
    """The virtual tokens of all inlays in one stack."""

    def __init__(self, stack: Stack, route: Route):
        self.stack = stack
        self.route = route
        self.pieces: dict[str, list[Tokens]] = {}

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
        return self._embed(ids, groups or Groups(((),), None))

    def embed_for(self, names: Names, ids: Tensor) -> Tensor:
        """Vectors for ids `[T]` that these inlays serve: `[T, D]`."""
        here = tuple(name for name in names if name in self.pieces)
        return self._embed(ids[None], Groups((here,), None))[0]

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
        asked = torch.where(virtual, ids - first + 1, 0)
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
