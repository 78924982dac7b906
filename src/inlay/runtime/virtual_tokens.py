"""Virtual tokens: trained vectors that stand wherever a text's token ids name them.

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
from typing_extensions import override

from inlay.architectures.chart import Chart
from inlay.core.per_thread import PerThread
from inlay.core.piece import Piece, VirtualTokens
from inlay.core.site import Site
from inlay.errors import PortError, RowsError
from inlay.runtime.embeds import check_ids, check_vectors
from inlay.runtime.port import Port, StackState, accepts
from inlay.runtime.routing import Groups, Names
from inlay.runtime.stack_inputs import readable


@dataclass(frozen=True)
class VirtualPositions:
    """Where the virtual tokens of a pass stand.

    numbers `[B, T]`: which of its row's virtual tokens stands at a position, from 1; 0 for none.
    groups: which inlays with virtual tokens serve the rows. by_piece: the numbers of single
    pieces, computed when they are first needed.
    """

    numbers: Tensor
    groups: Groups
    by_piece: dict[VirtualTokens, Tensor | None] = field(default_factory=dict)


class _Pass(PerThread):
    __slots__ = ()
    positions: VirtualPositions | None = None


@accepts(VirtualTokens)
class VirtualTokenPort(Port):
    """The virtual tokens of all inlays in one stack.

    positions: where they stand in the pass under way in this thread.
    """

    label = "virtual tokens"

    def __init__(self, state: StackState):
        super().__init__(state)
        self.pieces: dict[str, list[VirtualTokens]] = {}
        self._first_id = 0
        self._pass = _Pass()

    @property
    def positions(self) -> VirtualPositions | None:  # noqa: D102
        return self._pass.positions

    @positions.setter
    def positions(self, positions: VirtualPositions | None) -> None:
        self._pass.positions = positions

    @classmethod
    @override
    def check(cls, method: str, site: Site, piece: Piece, chart: Chart) -> None:
        check_embed(method, site)
        check_vectors(method, site, chart)
        check_ids(method, site, chart)

    @override
    def add(self, name: str, site: Site, piece: Piece) -> None:
        assert isinstance(piece, VirtualTokens)
        if not self.pieces:
            self._first_id = self.first_id
        self.pieces.setdefault(name, []).append(piece)

    @override
    def remove(self, name: str) -> None:
        self.pieces.pop(name, None)

    @property
    def first_id(self) -> int:
        """V, the id of the first virtual token."""
        return self.stack.vocabulary

    @override
    def enter(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Embed the ids, where any of them is virtual.

        Raises RowsError where the embedding table has been resized since: ids then mean others.
        """
        if self.pieces and self.first_id != self._first_id:
            raise RowsError(
                f"the base had {self._first_id} tokens when virtual tokens were attached, and has "
                f"{self.first_id} now, so that their ids mean other ones; detach them, load or "
                "attach them again, and encode the texts anew"
            )
        ids = inputs.get("input_ids")
        if not self.pieces or ids is None or self._none_in(ids):
            return inputs
        embeds, beside = self.embed(ids), self.stack.looked_up(ids)
        return {**inputs, "input_ids": None, "inputs_embeds": embeds, **beside}

    def embed(self, ids: Tensor) -> Tensor:
        """Vectors for the ids of a batch `[B, T]`, served by the rows' own inlays: `[B, T, D]`."""
        groups = self.routing.groups(len(ids), self.pieces) if self.pieces else None
        groups = groups or Groups(((),), None)
        self.positions = VirtualPositions(self._numbers(ids), groups) if self.pieces else None
        return self._embed(ids, groups)

    def embed_for(self, names: Names, ids: Tensor) -> Tensor:
        """Vectors for ids `[T]` that these inlays serve: `[T, D]`."""
        bound = self.routing.bound
        try:
            self.routing.bound = (names,)  # pieces at the embeddings read one row here
            return self._embed(ids[None], Groups((self._with_tokens(names),), None))[0]
        finally:
            self.routing.bound = bound

    def begin_prefix(self, names: Sequence[Names], ids: Tensor, before: Sequence[int]) -> None:
        """Note the positions of a pass of one row a group: `before` other positions, then `ids`.

        ids `[T]` are the same for every group.
        """
        longest = max(before)
        rows = [F.pad(self._numbers(ids), (n, longest - n)) for n in before]
        groups = Groups(tuple(self._with_tokens(n) for n in names), tuple(range(len(names))))
        self.positions = VirtualPositions(torch.stack(rows), groups)

    def move(self, source: Tensor, extra: int) -> None:
        """Follow rows to their new layout with `extra` more positions: source `[B, T + extra]`."""
        if self.positions is not None:
            wide = F.pad(self.positions.numbers, (0, extra))
            self.positions = VirtualPositions(wide.gather(1, source), self.positions.groups)

    def numbers(self, piece: VirtualTokens) -> Tensor | None:
        """Where one piece's virtual tokens stand in the pass under way, `[B, T]`.

        Its n-th token is n, everything else is 0. None where it has no token in the pass.
        """
        positions = self.positions
        if positions is None:
            return None
        if piece not in positions.by_piece:
            positions.by_piece[piece] = self._numbers_of(piece, positions)
        return positions.by_piece[piece]

    def _numbers_of(self, piece: VirtualTokens, positions: VirtualPositions) -> Tensor | None:
        numbers, groups = positions.numbers, positions.groups
        starts = [self._start(names, piece) for names in groups.names]
        if all(start is None for start in starts):
            return None
        by_group = [-1 if start is None else start for start in starts]
        start = groups.by_row(by_group, numbers.device)
        moved = numbers - start[:, None]
        return moved.where((start[:, None] >= 0) & (moved > 0) & (moved <= piece.length), 0)

    def _start(self, names: Names, piece: VirtualTokens) -> int | None:
        """How many virtual tokens of a row come before a piece's; None where it has none of it."""
        start = 0
        for name in names:
            for other in self.pieces[name]:
                if other is piece:
                    return start
                start += other.length
        return None

    def _with_tokens(self, names: Names) -> Names:
        return tuple(name for name in names if name in self.pieces)

    def _numbers(self, ids: Tensor) -> Tensor:
        return torch.where(ids >= self.first_id, ids - self.first_id + 1, 0)

    def _embed(self, ids: Tensor, groups: Groups) -> Tensor:
        assert self.stack.embed is not None
        if not self.pieces:
            return self.stack.embed(ids)
        virtual = ids >= self.first_id
        embeds = self.stack.embed(ids.masked_fill(virtual, 0))
        if self._none_in(ids):
            return embeds
        tables = [self._table(names, embeds) for names in groups.names]
        counts = [len(table) for table in tables]
        numbers = self._numbers(ids)
        missing = numbers > groups.by_row(counts, ids.device)[:, None]
        if readable(ids) and bool(missing.any()):
            raise RowsError(
                f"a text names {int(numbers.max())} virtual tokens, and the inlays of its row have "
                f"{min(counts)}; attach one with as many as the template, or use rows"
            )
        # On a device an id without a vector is an index outside the table, as it is in the base.
        most = max(counts)
        index = torch.where(missing, most + 1, numbers)[..., None]
        padded = [F.pad(t, (0, 0, 1, most - len(t))) for t in tables]  # row 0: no virtual token
        number = groups.by_row(range(len(tables)), ids.device)
        vectors = torch.stack(padded)[number].expand(len(ids), -1, -1)
        vectors = vectors.gather(1, index.expand(-1, -1, embeds.shape[-1]))
        return torch.where(virtual[..., None], vectors, embeds)

    def _none_in(self, ids: Tensor) -> bool:
        """Whether there is certainly no virtual token among ids; a device is not asked."""
        return readable(ids) and not bool((ids >= self.first_id).any())

    def _table(self, names: Names, embeds: Tensor) -> Tensor:
        """The vectors of these inlays, `[N, D]`, like the embeddings."""
        vectors = [piece().to(embeds.dtype) for name in names for piece in self.pieces[name]]
        return torch.cat([embeds.new_zeros(0, embeds.shape[-1]), *vectors])


def check_embed(method: str, site: Site) -> None:
    """Raise PortError at a site that is not the input embeddings."""
    if site.role not in ("embed", "embed.target"):
        raise PortError(f"{method} adds positions, which stand at 'embed', not at {site.role!r}")
