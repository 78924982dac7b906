"""Which inlay serves which row of the batch. Written once, here, so that every method can mix.

with rows(model, ["legal", None, "medical"]):     Routing.request: what the user asks for
    model(**batch)                                Routing.bind: copied when a pass begins
    …                                             ports read `bound`, through `groups`
loss.backward()                                   a recomputed block needs the rows of its own
                                                  pass: `StackHooks` puts `bound` back first
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inlay.core.context import PassContext
from inlay.errors import NamingError, RowsError, nearest

Names = tuple[str, ...]
"""The inlays that serve a row, in order."""

Request = Sequence[str | Sequence[str] | None]
"""What a user asks for: for every row a name, several names, or None for the bare base."""


@dataclass(frozen=True)
class Groups:
    """Rows of a batch, grouped by the inlays that serve them.

    names: for every group, the inlays that serve it, in order. group: for every row, its group's
    number; None where all rows are in the only group.
    """

    names: tuple[Names, ...]
    group: tuple[int, ...] | None

    def index(self, device: torch.device) -> Tensor:
        """The group number of every row, `[B]`."""
        return torch.tensor(self.group, device=device)

    def apply(
        self,
        run: Callable[..., Tensor],
        tensors: tuple[Tensor, ...],
        context: PassContext,
    ) -> Tensor:
        """`run(names, *rows, context)` for every group of rows, put back in order.

        A group without names keeps its rows of the last tensor as they are.
        """
        if self.group is None:
            return run(self.names[0], *tensors, context)
        results = []
        runs = list(_runs(self.group))
        if len(runs) == len(self.names):  # each group is one run of neighbouring rows: no copying
            for number, start, stop in runs:
                rows = tuple(tensor[start:stop] for tensor in tensors)
                names = self.names[number]
                results.append(run(names, *rows, context.rows(start, stop)) if names else rows[-1])
            return torch.cat(results)
        numbers = self.index(tensors[-1].device)
        order = torch.argsort(numbers, stable=True)
        for number, names in enumerate(self.names):
            index = (numbers == number).nonzero().squeeze(1)
            rows = tuple(tensor.index_select(0, index) for tensor in tensors)
            results.append(run(names, *rows, context.select(index)) if names else rows[-1])
        return torch.cat(results).index_select(0, torch.argsort(order))


class Routing:
    """Rows as requested by the user, and as bound for the pass under way.

    The two are the same until a checkpointed block is recomputed in backward, long after any
    `with` has ended: then the bound rows are those of the pass whose block it is.

    enabled: every attached inlay, and whether it acts.
    """

    def __init__(self) -> None:
        self.enabled: dict[str, bool] = {}
        self.requested: tuple[Names, ...] | None = None
        self.bound: tuple[Names, ...] = ((),)
        self._cache: dict[tuple, Groups] = {}

    def request(self, names: Request | None) -> None:
        """Set the rows from now on; None for every enabled inlay on every row.

        Raises RowsError for what is no list of names, NamingError for an unknown name.
        """
        if names is None:
            self.requested = None
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
                if name not in self.enabled:
                    raise NamingError(f"no inlay is called {name!r}{nearest(name, self.enabled)}")
            rows.append(row)
        if not rows:
            raise RowsError("rows needs at least one entry")
        self.requested = tuple(rows)
        self.bind()

    def restore(self, rows: tuple[Names, ...] | None) -> None:
        """Go back to rows that were `requested` before."""
        self.requested = rows
        self.bind()

    def enable(self, name: str, acts: bool) -> None:
        """Add an inlay, or switch one on or off."""
        self.enabled[name] = acts
        self.bind()

    def forget(self, name: str) -> None:
        """Remove an inlay, and with it whatever rows were requested."""
        del self.enabled[name]
        self.request(None)

    def bind(self) -> None:
        """Take the requested rows for the pass that begins."""
        rows = self.requested if self.requested is not None else (tuple(self.enabled),)
        off = {name for name, acts in self.enabled.items() if not acts}
        if off:
            rows = tuple(tuple(name for name in row if name not in off) for row in rows)
        self.bound = rows

    def serving(self) -> set[str]:
        """The inlays that serve any row of the pass under way."""
        return {name for row in self.bound for name in row}

    def groups(self, batch: int, among: Collection[str]) -> Groups | None:
        """How the inlays `among` are spread over a batch; None where they serve no row of it.

        A batch of k rows for every row requested (beams, several returned sequences, flattened
        positions) keeps the rows in order, as `generate` lays them out.
        """
        if len(self.bound) == 1:
            names = tuple(name for name in self.bound[0] if name in among)
            return Groups((names,), None) if names else None
        if not any(name in among for row in self.bound for name in row):
            return None
        key = (self.bound, batch, tuple(among))
        groups = self._cache.get(key)
        if groups is None:
            if len(self._cache) > 256:
                self._cache.clear()
            groups = self._cache[key] = self._spread(batch, among)
        return groups if any(groups.names) else None

    def _spread(self, batch: int, among: Collection[str]) -> Groups:
        times, rest = divmod(batch, len(self.bound))
        if rest or not times:
            raise RowsError(
                f"rows names {len(self.bound)} rows, but the batch has {batch}; "
                "call rows(model, [...]) with one entry for every row"
            )
        rows = [tuple(name for name in row if name in among) for row in self.bound]
        names = tuple(dict.fromkeys(rows))
        if len(names) == 1:
            return Groups(names, None)
        number = {row: i for i, row in enumerate(names)}
        return Groups(names, tuple(number[row] for row in rows for _ in range(times)))


def _runs(group: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """(group, start, stop) of every run of neighbouring rows of one group."""
    start = 0
    for stop in range(1, len(group) + 1):
        if stop == len(group) or group[stop] != group[start]:
            yield group[start], start, stop
            start = stop
