"""Rows as a source gives them, before their values are checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class BadRow(Exception):
    """Why one row cannot be used. It becomes a DataError, or an entry of `Dataset.skipped`."""


RawRows = Iterator[tuple[str, object]]
"""Where a row comes from, and the row: a mapping if it is usable, or BadRow."""

KINDS = {type(None): "null", dict: "an object", list: "a list", int: "a number", str: "a text"}


def kind_of(value: object) -> str:
    """The type of a value as messages name it, such as "a list"."""
    return KINDS.get(type(value), f"a {type(value).__name__}")


def number_rows(source: str, rows: Iterable[object]) -> RawRows:
    """Name the rows by their number in the source, counted from one: `source#1`."""
    return ((f"{source}#{number}", row) for number, row in enumerate(rows, 1))
