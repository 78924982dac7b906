"""Rows of JSON files: an object on each line, a list of objects, or one of the known wrappers.

The ending does not decide alone: a `.json` file may hold an object on each line, and a `.jsonl`
file an indented list, for programs write both.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inlay.data.raw import BadRow, RawRows, kind_of, number_rows
from inlay.data.squad import is_article, questions
from inlay.data.text import TextFile
from inlay.errors import DataError

BLANK = re.compile(r"\s*")


def read_lines(text: TextFile) -> RawRows:
    """The rows of a `.jsonl` file: an object on each line, or what `read_whole` takes."""
    lines = ((number, line) for number, line in enumerate(text.lines, 1) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    number, line = first
    second = next(lines, None)
    if _begins_a_list(line, alone=second is None):
        rest = itertools.chain([] if second is None else [second], lines)
        yield from _whole(text, "\n" * (number - 1) + line + _joined(number, rest))
        return
    head = [first] if second is None else [first, second]
    everything: Iterator[tuple[int, str]] = itertools.chain(head, lines)
    if line.strip() == "{":  # indented objects, one after the other
        everything, copy = itertools.tee(everything)
        objects = _objects(_joined(0, copy))
        if objects is not None:
            yield from ((f"{text.path}:{number}", row) for number, row in objects)
            return
    for number, line in everything:
        yield from _questions(f"{text.path}:{number}", _row(text, line))


def read_whole(text: TextFile) -> RawRows:
    """The rows of a `.json` file.

    It is a list of objects, an object that holds that list or columns of equal length, SQuAD's
    articles, or an object on each line.

    Raises DataError where it is none of these.
    """
    yield from _whole(text, "".join(text.lines))


def _whole(text: TextFile, content: str) -> RawRows:
    path = text.path
    problem = next(filter(None, map(text.problem, content.split("\n"))), None)
    if problem is not None:
        raise DataError(f"{path}: not usable JSON: {problem}")
    try:
        value = json.loads(content, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and content.lstrip().startswith("{"):
            yield from _several(text, content)
            return
        before = content[: error.pos].rstrip()
        last_comma = before.endswith(",") or error.msg.startswith("Illegal trailing comma")
        cure = "; remove the comma after the last one" if last_comma else ""
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error.msg}{cure}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not usable JSON: {error}") from None
    rows = value if isinstance(value, list) else _unwrap(path, value)
    if rows and is_article(rows[0]):
        yield from number_rows(str(path), questions(rows))
    else:
        yield from number_rows(str(path), rows)


def _several(text: TextFile, content: str) -> RawRows:
    """The rows of a text of several objects, on lines of their own or indented."""
    objects = _objects(content)
    if objects is not None:
        for number, row in objects:
            yield from _questions(f"{text.path}:{number}", row)
        return
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield from _questions(f"{text.path}:{number}", _row(text, line))


def _questions(where: str, row: object) -> RawRows:
    """A row, or the questions of an article."""
    yield from ((where, part) for part in (questions([row]) if is_article(row) else (row,)))


def _row(text: TextFile, line: str) -> object:
    """The row on a line, or BadRow."""
    problem = text.problem(line)
    if problem is not None:
        return BadRow(problem)
    try:
        return json.loads(line, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        return BadRow(f"not valid JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return BadRow(f"not usable JSON: {error}")


def _begins_a_list(line: str, *, alone: bool) -> bool:
    """Whether the first line of a file begins a list of rows, and is not a row that is a list.

    alone: whether the file has no other line.
    """
    if not line.lstrip().startswith("["):
        return False
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return True
    return alone and isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _joined(number: int, lines: Iterator[tuple[int, str]]) -> str:
    """Numbered lines as one text, with the blank ones that were left out; number: of the last."""
    parts = []
    for place, line in lines:
        parts.append("\n" * (place - number - 1) + line)
        number = place
    return "".join(parts)


def _objects(content: str) -> list[tuple[int, object]] | None:
    """The objects of a text that follow each other, and the line of each; None for any other."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    objects: list[tuple[int, object]] = []
    place, line = 0, 1
    while True:
        begin = _after_blanks(content, place)
        line += content.count("\n", place, begin)
        if begin == len(content):
            return objects
        try:
            value, place = decoder.raw_decode(content, begin)
        except (ValueError, RecursionError):
            return None
        objects.append((line, value))
        line += content.count("\n", begin, place)


def _after_blanks(content: str, place: int) -> int:
    match = BLANK.match(content, place)
    assert match is not None
    return match.end()


def _unwrap(path: Path, value: object) -> list[Any]:
    """The rows of an object that is a whole file. Raises DataError."""
    if not isinstance(value, Mapping):
        raise DataError(f"{path}: expected a list of objects, found {kind_of(value)}")
    lists = {
        name: content
        for name, content in value.items()
        if isinstance(content, list) and content and all(isinstance(row, dict) for row in content)
    }
    if "data" in lists or len(lists) == 1:
        return lists.get("data") or next(iter(lists.values()))
    columns = [] if lists else list(value.values())
    if columns and all(isinstance(column, list) and column for column in columns):
        if len({len(column) for column in columns}) == 1:
            return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    elif columns and all(isinstance(column, dict) and column for column in columns):
        keys = list(columns[0])  # of the rows, as pandas writes columns
        if all(list(column) == keys for column in columns):
            return [{name: column[key] for name, column in value.items()} for key in keys]
    held = f" that holds the lists {', '.join(map(repr, lists))}" if lists else ""
    raise DataError(
        f"{path}: expected a list of objects, found an object{held}; write the list of rows alone"
    )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The pairs of a JSON object as a dict. Raises ValueError where a name is repeated."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {repeated!r} is repeated")
    return row
