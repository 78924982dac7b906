"""Which inlay serves which row of the batch. Written once, here, so that every method can mix."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inlay.errors import NamingError, RowsError, nearest

Names = tuple[str, ...]
Asked = Sequence[str | Sequence[str] | None]


@dataclass(frozen=True)
class Groups:
    """Rows of a batch that are served alike.

    names: for every group, the inlays that serve it, in order. group: for every row, its group's
    number; None where all rows are in the only group.
    """

    names: tuple[Names, ...]
    group: tuple[int, ...] | None

    def index(self, device: torch.device) -> Tensor:
        """The group number of every row, `[B]`."""
        return torch.tensor(self.group, device=device)


class Routing:
    """Rows as asked for by the user, and as bound: what the ports go by.

    The two are the same until a checkpointed block is recomputed in backward, long after any
    `with` has ended: then the binding is that of the pass whose block it is (see `ports.door`).
    """

    def __init__(self) -> None:
        self.known: dict[str, bool] = {}  # name -> enabled
        self.asked: tuple[Names, ...] | None = None
        self.bound: tuple[Names, ...] = ((),)
        self._cache: dict[tuple, Groups] = {}

    def ask(self, names: Asked | None) -> None:
        """Set the rows from now on: per row a name, several names, or None for the bare base."""
        if names is None:
            self.asked = None
            self.bind()
            return
        if isinstance(names, str):
            raise RowsError(f"rows takes a list with one entry a row, not the text {names!r}")
        rows = []
        for entry in names:
            if entry is not None and not isinstance(entry, str | list | tuple):
                raise RowsError(f"rows takes the names of inlays, not {entry!r:.60}")
            row = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
            for name in row:
                if name not in self.known:
                    raise NamingError(f"no inlay is called {name!r}{nearest(name, self.known)}")
            rows.append(row)
        if not rows:
            raise RowsError("rows needs at least one entry")
        self.asked = tuple(rows)
        self.bind()

    def enable(self, name: str, acts: bool) -> None:
        """Make an inlay known, or switch a known one on or off."""
        self.known[name] = acts
        self.bind()

    def forget(self, name: str) -> None:
        """An inlay is gone, and with it whatever rows were asked for."""
        del self.known[name]
        self.ask(None)

    def bind(self) -> None:
        """Go by what is asked for."""
        rows = self.asked if self.asked is not None else (tuple(self.known),)
        off = {name for name, enabled in self.known.items() if not enabled}
        if off:
            rows = tuple(tuple(name for name in row if name not in off) for row in rows)
        self.bound = rows

    def groups(self, batch: int, here: Collection[str]) -> Groups | None:
        """How the inlays `here` are spread over a batch; None where they serve no row of it.

        A batch of k rows for every row asked for (beams, several returned sequences, flattened
        positions) keeps the rows in order, as `generate` lays them out.
        """
        if len(self.bound) == 1:
            names = tuple(name for name in self.bound[0] if name in here)
            return Groups((names,), None) if names else None
        key = (self.bound, batch, tuple(here))
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) > 256:
                self._cache.clear()
            found = self._cache[key] = self._spread(batch, here)
        return found if any(found.names) else None

    def _spread(self, batch: int, here: Collection[str]) -> Groups:
        times, rest = divmod(batch, len(self.bound))
        if rest or not times:
            raise RowsError(
                f"rows names {len(self.bound)} rows, but the batch has {batch}; "
                "call rows(model, [...]) with one entry for every row"
            )
        rows = [tuple(name for name in row if name in here) for row in self.bound]
        names = tuple(dict.fromkeys(rows))
        if len(names) == 1:
            return Groups(names, None)
        number = {row: i for i, row in enumerate(names)}
        return Groups(names, tuple(number[row] for row in rows for _ in range(times)))
