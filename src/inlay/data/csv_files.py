"""Rows of files whose cells are separated by a character: `.csv` and `.tsv`."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator
from typing import Literal

from inlay.data.raw import BadRow, RawRows
from inlay.data.text import TextFile
from inlay.errors import DataError

WIDEST_FIELD = 2**31 - 1
"""Characters that a field may have; the csv module's own 131,072 refuses long documents."""

DELIMITERS = (",", ";", "\t", "|")
"""The characters that are recognised as separators of cells."""

DECLARED = re.compile(r'"?sep=(.)"?\r?\n?')
"""The first line that Excel writes to say which character separates cells."""

RECORDS = 20
"""How many records decide which character separates cells."""


def read_cells(text: TextFile, delimiter: str | None, usual: str) -> RawRows:
    """The rows of a file with a header.

    Args:
        text: the file.
        delimiter: what separates cells; None where the file tells.
        usual: what separates them in files of this ending.

    Raises DataError for a header that cannot be read.
    """
    path, lines, skipped = text.path, iter(text.lines), 0
    first = next(lines, "")
    declared = DECLARED.fullmatch(first)
    if declared is not None:
        delimiter, first, skipped = delimiter or declared[1], next(lines, ""), 1
    if delimiter is None:
        delimiter = detect_delimiter(text.head, usual)
    reader = csv.reader(
        itertools.chain([first], lines),
        delimiter=delimiter,
        quoting=detect_quoting(text.head, delimiter),
        strict=True,
    )
    limit = csv.field_size_limit(WIDEST_FIELD)
    try:
        header: list[str] | None = None
        while True:
            where = f"{path}:{reader.line_num + 1 + skipped}"
            row: object
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if header is None:
                    raise DataError(f"{where}: not a CSV header: {error}") from None
                row = BadRow(f"not valid CSV: {error}")
            else:
                if not cells:
                    continue
                if header is None:
                    header = _header(text, where, cells)
                    continue
                row = _row(text, header, cells, delimiter)
            yield where, row
    finally:
        csv.field_size_limit(limit)


def detect_delimiter(head: str, usual: str) -> str:
    """The character that separates cells.

    head: the lines at the beginning of a file. usual: the character where nothing tells another.

    It is another one only where that gives all records equally many cells, at least two, and the
    usual one does not; or where the usual one leaves the header one cell and the other does not.
    """
    widths = {character: _widths(head, character) for character in {usual, *DELIMITERS}}
    regular = [
        character for character, counts in widths.items() if len(set(counts)) == 1 and counts[0] > 1
    ]
    if usual not in regular:
        if len(regular) == 1:
            return regular[0]
        several = [c for c in DELIMITERS if c != usual and widths[c] and widths[c][0] > 1]
        if widths[usual][:1] == [1] and len(several) == 1:
            return several[0]
    return usual


def detect_quoting(head: str, delimiter: str) -> Literal[0, 3]:
    """Whether quotes are a part of the text, as in many files of tabs: a setting of `csv`.

    They are where every line by itself has as many cells as the header, and quotes would join
    lines or be wrong.
    """
    if delimiter != "\t" or '"' not in head:
        return csv.QUOTE_MINIMAL
    plain = _widths(head, delimiter, csv.QUOTE_NONE, None)
    quoted = _widths(head, delimiter, csv.QUOTE_MINIMAL, None)
    literal = len(set(plain)) == 1 and quoted != plain
    return csv.QUOTE_NONE if literal else csv.QUOTE_MINIMAL


def _widths(
    head: str,
    delimiter: str,
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL,
    most: int | None = RECORDS,
) -> list[int]:
    """How many cells the first records have, `most` at most; none where they cannot be read so."""
    strict = most is None
    lines = io.StringIO(head, newline="")
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=strict)
    try:
        return [len(cells) for cells in itertools.islice(_filled(reader), most)]
    except csv.Error:
        return []


def _filled(records: Iterator[list[str]]) -> Iterator[list[str]]:
    return (cells for cells in records if cells)


def _header(text: TextFile, where: str, names: list[str]) -> list[str]:
    """The names of the columns; an empty one is of a column without a name."""
    for name in names:
        problem = text.problem(name)
        if problem is None and "\0" in name:
            problem = "not text, for it holds zero bytes"
        if problem is not None:
            raise DataError(f"{where}: the header is {problem}")
        if name and names.count(name) > 1:
            raise DataError(f"{where}: the header names column {name!r} twice; rename one of them")
    return names


def _row(text: TextFile, header: list[str], cells: list[str], delimiter: str) -> object:
    """The cells under the names of the header; a column without a name is left out."""
    problem = next(filter(None, map(text.problem, cells)), None)
    if problem is not None:
        return BadRow(problem)
    if any(cells[len(header) :]) or len(cells) < len(header):
        return BadRow(
            f"{len(cells)} cells under a header of {len(header)}; cells are separated by "
            f"{delimiter!r}, name another delimiter or put cells that hold it in quotes"
        )
    return {name: cell for name, cell in zip(header, cells, strict=False) if name}
