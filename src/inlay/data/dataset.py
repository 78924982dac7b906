"""Examples, and the collections of them: `Dataset` in memory, `Stream` read again on each pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from typing_extensions import override

from inlay.errors import DataError

Value = str | int | float | list[Any]
"""What a field may hold. A JSON or Arrow truth value stays a `bool`."""

MAX_LISTED = 10
"""How many skipped rows a message lists one by one."""


@dataclass(frozen=True, slots=True)
class Example:
    """One usable row.

    fields: its values by name. These are every text or number of the row and the lists that tasks
        read, under their names in the file, and the fields that `columns` and `template` add.
    where: where the row comes from. `movie.jsonl:12` is line 12 of a file, `movie.parquet#12` its
        twelfth row, both counted from one.
    """

    fields: Mapping[str, Value]
    where: str


@dataclass(frozen=True)
class Skipped:
    """A row that `skip_bad` left out: where it comes from, and why."""

    where: str
    reason: str

    @override
    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class Dataset(Sequence[Example]):
    """Examples in the order of their source, and the rows that were skipped.

    source: the name of where they come from, for messages.
    """

    source: str
    examples: tuple[Example, ...]
    skipped: tuple[Skipped, ...] = ()

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...
    @override
    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        return self.examples[index]

    @override
    def __len__(self) -> int:
        return len(self.examples)

    @override
    def __repr__(self) -> str:
        return f"Dataset({self.source!r}: {len(self)} examples, {len(self.skipped)} skipped)"


@dataclass(frozen=True)
class Stream(Iterable[Example]):
    """Examples that are read from their source on each pass; none is kept in memory.

    source: the name of where they come from. count: how many they are. skipped: the rows that
    were skipped. read: starts a new pass.
    """

    source: str
    count: int
    skipped: tuple[Skipped, ...]
    read: Callable[[], Iterator[Example]] = field(repr=False, compare=False)

    @override
    def __iter__(self) -> Iterator[Example]:
        return self.read()

    def __len__(self) -> int:
        return self.count


def bad_rows(
    rows: Sequence[Skipped], cure: str = "skip_bad", *, encoding: Sequence[Skipped] = ()
) -> DataError:
    """The error about the bad rows of a source, at least one: the first, and how many more.

    rows: those that one reader found. cure: what leaves them out, in Python. encoding: those of
    the same source that are read and cannot be encoded; their first is named as well.
    """
    named = "; ".join(str(found[0]) for found in (rows, encoding) if found)
    rest = [*rows[1:], *encoding[1:]]
    if not rest and not (rows and encoding):
        return DataError(named)
    count = "1 more row is bad" if len(rest) == 1 else f"{len(rest)} more rows are bad"
    others = f"; {count}, the next at {rest[0].where}" if rest else ""
    return DataError(f"{named}{others}: mend them, or leave them out by {cure} (--skip-bad-rows)")


def no_rows(source: str, skipped: Sequence[Skipped]) -> DataError:
    """The error about a source without a usable row; skipped: its bad ones."""
    if skipped:
        return DataError(
            f"{source} holds no usable row: all {len(skipped)} rows are bad, "
            f"the first at {skipped[0]}"
        )
    return DataError(f"{source} holds no rows; give a source that has some")


def describe_skipped(skipped: Sequence[Skipped], name: str) -> list[str]:
    """Lines of text that say how many rows of a source were skipped, and name the first ten.

    name: what the rows belong to, such as "train". Without skipped rows there are no lines.
    """
    if not skipped:
        return []
    count = "1 row was" if len(skipped) == 1 else f"{len(skipped)} rows were"
    lines = [f"{count} left out of {name}:", *(f"  {row}" for row in skipped[:MAX_LISTED])]
    if len(skipped) > MAX_LISTED:
        lines.append(f"  and {len(skipped) - MAX_LISTED} more")
    return lines
