"""Which inlay serves which row of the batch. Written once, here, so that every method can mix.

with rows(model, ["legal", None, "medical"]):     Routing.request: what the user asks for
    model(**batch)                                Routing.bind: copied when a pass begins
    …                                             ports read `bound`, through `groups`
loss.backward()                                   a recomputed block needs the rows of its own
                                                  pass: `StackHooks` puts `bound` back first

Rows are requested for a thread or an asyncio task, and those it starts by copying its context
(`asyncio.create_task`, `asyncio.to_thread`); a plain `threading.Thread` starts without a request.
They are bound for a thread, because a pass never leaves its thread, and a context is gone when a
block is recomputed in backward.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor

from inlay.core.context import PassContext
from inlay.core.per_thread import PerThread
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

    All of it is known without asking a device. What a device has to know is copied to it once,
    and kept: a copy in each pass would make the CPU wait each time.
    """

    names: tuple[Names, ...]
    group: tuple[int, ...] | None
    _kept: dict[tuple, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def index(self, device: torch.device) -> Tensor:
        """The group number of every row, `[B]`."""
        assert self.group is not None
        return self._on(device, self.group)

    def by_row(self, values: Sequence[int], device: torch.device) -> Tensor:
        """The value of each row's group, `[B]`; `[1]` where all rows are in the only group."""
        if self.group is None:
            return torch.full((1,), values[0], device=device)
        return self._on(device, tuple(values[number] for number in self.group))

    def rows(self, number: int, device: torch.device) -> Tensor:
        """The rows of a group, `[b]`."""
        return self._on(device, self._rows(number))

    def back(self, device: torch.device) -> Tensor:
        """Where each row stands when the groups' rows are put one group after another, `[B]`."""
        order = [row for number in range(len(self.names)) for row in self._rows(number)]
        return self._on(device, tuple(sorted(range(len(order)), key=order.__getitem__)))

    def count(self, number: int) -> int:
        """How many rows a group has."""
        return len(self._rows(number))

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
                part = context.rows(start, stop, rows[-1].device)
                results.append(run(names, *rows, part) if names else rows[-1])
            return torch.cat(results)
        device = tensors[-1].device
        for number, names in enumerate(self.names):
            index = self.rows(number, device)
            rows = tuple(tensor.index_select(0, index) for tensor in tensors)
            results.append(run(names, *rows, context.select(index)) if names else rows[-1])
        return torch.cat(results).index_select(0, self.back(device))

    def _rows(self, number: int) -> tuple[int, ...]:
        assert self.group is not None
        return tuple(row for row, group in enumerate(self.group) if group == number)

    def _on(self, device: torch.device, numbers: tuple[int, ...]) -> Tensor:
        """Numbers as a tensor on a device; in a compiled pass they are a constant of it."""
        if torch.compiler.is_compiling():
            return torch.tensor(numbers, device=device)
        if (device, numbers) not in self._kept:
            with torch.inference_mode(False):  # training reads it as well
                self._kept[device, numbers] = torch.tensor(numbers, device=device)
        return self._kept[device, numbers]


Rows = tuple[Names, ...]

_REQUESTS: ContextVar[Mapping[int, Rows]] = ContextVar("rows")
"""What this thread or asyncio task requests, by the number of the model's `Requested`."""

_numbers = count()


class Requested:
    """The rows that each thread or asyncio task requests of one model; None: no request.

    A compiled pass must read them as well, and torch cannot trace `ContextVar.get`. It does look
    an attribute up where that is written in C, and looks again in each call whether the value is
    still the same. So the variable's own `get` is the getter of a property. Its argument is what
    comes back where nothing is set: the object itself.
    """

    all = property(_REQUESTS.get)

    def __init__(self) -> None:
        self.number = next(_numbers)

    @property
    def rows(self) -> Rows | None:
        """What this thread or task requests; may be set."""
        requests = self.all
        return None if requests is self else requests.get(self.number)

    @rows.setter
    def rows(self, rows: Rows | None) -> None:
        requests = {} if self.all is self else {**self.all}
        requests.pop(self.number, None)
        _REQUESTS.set(requests if rows is None else {**requests, self.number: rows})

    def __deepcopy__(self, memo: dict[int, Any]) -> Requested:
        copy = Requested()
        copy.rows = self.rows
        return copy

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:  # a pickle requests nothing
        return type(self), ()


class Bound(PerThread):
    """The rows of the pass under way in this thread; a thread without one serves nothing."""

    __slots__ = ()
    rows: Rows = ((),)


class Routing:
    """Rows as requested by the user, and as bound for the pass under way.

    The two are the same until a checkpointed block is recomputed in backward, long after any
    `with` has ended: then the bound rows are those of the pass whose block it is.

    enabled: every attached inlay, and whether it acts; the same for all threads.
    """

    def __init__(self) -> None:
        self.enabled: dict[str, bool] = {}
        self._requested = Requested()
        self._bound = Bound()
        self._choosing: frozenset[int] = frozenset()
        self._cache: dict[tuple, Groups] = {}

    @property
    def requested(self) -> Rows | None:
        """What this thread or asyncio task requests; None for every enabled inlay on every row."""
        return self._requested.rows

    @property
    def bound(self) -> Rows:
        """The rows of the pass under way in this thread; may be set."""
        return self._bound.rows

    @bound.setter
    def bound(self, rows: Rows) -> None:
        self._bound.rows = rows

    def request(self, names: Request | None) -> None:
        """Set the rows of this thread or task from now on; None for every enabled inlay on each.

        Raises RowsError for what is no list of names and for a name that a row has twice,
        NamingError for an unknown name.
        """
        if names is None:
            self.restore(None)
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
                if row.count(name) > 1:
                    raise RowsError(
                        f"a row names {name!r} {row.count(name)} times, and an inlay serves a row "
                        "once; name it once"
                    )
            rows.append(row)
        if not rows:
            raise RowsError("rows needs at least one entry")
        self.restore(tuple(rows))

    def restore(self, rows: Rows | None) -> None:
        """Go back to rows that were `requested` before."""
        self._requested.rows = rows
        if not torch.compiler.is_compiling():
            self._note(threading.get_ident(), rows)
        self._bind()

    @property
    def chosen_elsewhere(self) -> bool:
        """Whether a thread chose rows that this one does not know of."""
        return self.requested is None and bool(self._choosing)

    def _note(self, thread: int, rows: Rows | None) -> None:
        self._choosing = self._choosing - {thread} if rows is None else self._choosing | {thread}

    def enable(self, name: str, acts: bool) -> None:
        """Add an inlay, or switch one on or off."""
        self.enabled = {**self.enabled, name: acts}
        self._bind()

    def forget(self, name: str) -> None:
        """Remove an inlay, and with it rows of this thread or task that name it."""
        self.enabled = {other: acts for other, acts in self.enabled.items() if other != name}
        rows = self.requested
        self.restore(None if rows is None or any(name in row for row in rows) else rows)

    def bind(self) -> None:
        """Take the requested rows for the pass that begins.

        Raises RowsError where they name an inlay that was detached after the request.
        """
        enabled = self.enabled
        for name in {name for row in self.requested or () for name in row}:
            if name not in enabled:
                raise RowsError(
                    f"these rows name {name!r}, which was detached after they were chosen; "
                    "choose them again with rows"
                )
        self._bind()

    def _bind(self) -> None:
        enabled, requested = self.enabled, self.requested
        rows = requested if requested is not None else (tuple(enabled),)
        off = {name for name, acts in enabled.items() if not acts}
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
        compiling = torch.compiler.is_compiling()
        groups = self._spread(batch, among) if compiling else self._kept(batch, among)
        return groups if any(groups.names) else None

    def _kept(self, batch: int, among: Collection[str]) -> Groups:
        key = (self.bound, batch, tuple(among))
        groups = self._cache.get(key)  # another thread may clear them at any time
        if groups is None:
            if len(self._cache) > 256:
                self._cache.clear()
            groups = self._cache[key] = self._spread(batch, among)
        return groups

    def times(self, batch: int) -> int:
        """How many rows of a batch there are for every one requested. Raises RowsError."""
        times, rest = divmod(batch, len(self.bound))
        if len(self.bound) > 1 and (rest or not times):
            raise RowsError(
                f"rows names {len(self.bound)} rows, but the batch has {batch}; "
                "call rows(model, [...]) with one entry for every row"
            )
        return times

    def _spread(self, batch: int, among: Collection[str]) -> Groups:
        rows = [tuple(name for name in row if name in among) for row in self.bound]
        names = tuple(dict.fromkeys(rows))
        if len(names) == 1:
            return Groups(names, None)
        times = self.times(batch)
        number = {row: i for i, row in enumerate(names)}
        return Groups(names, tuple(number[row] for row in rows for _ in range(times)))


def _runs(group: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """(group, start, stop) of every run of neighbouring rows of one group."""
    start = 0
    for stop in range(1, len(group) + 1):
        if stop == len(group) or group[stop] != group[start]:
            yield group[start], start, stop
            start = stop
