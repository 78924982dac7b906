"""Rows of column files: a word on each line with its tags, and a blank line after each sentence.

    Ada    NNP  B-PER
    lives  VBZ  O

is the row `{"tokens": ["Ada", "lives"], "tags": ["B-PER", "O"], "1": [...], "2": [...], "3": […]}`:
the first column is the words, the last one the tags, and every column has its number for a name,
so that `columns={"tags": "2"}` takes another one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from inlay.data.raw import BadRow, RawRows
from inlay.data.text import TextFile

DOCUMENT = "-DOCSTART-"
"""The first word of a line that begins a document."""

COMMENT = re.compile(r"# ?(id|sent_id|text|newdoc|newpar|begin|end)( |$)")
"""The beginning of a line about a sentence or a document, where the first word is not "#"."""

CONLLU = {"tokens": 1, "tags": 3}
"""Which columns of a CoNLL-U file are the words and their parts of speech, from 0."""


def read_columns(text: TextFile, delimiter: str | None, *, conllu: bool = False) -> RawRows:
    """The sentences of a file.

    Args:
        text: the file.
        delimiter: what separates columns; None for a tab where a line has one, else white space.
        conllu: whether it is CoNLL-U, with comments, ranges of words and words that are left out.
    """
    for number, words in _sentences(text, delimiter, conllu):
        yield f"{text.path}:{number}", _row(text, words, conllu)


def _sentences(
    text: TextFile, delimiter: str | None, conllu: bool
) -> Iterator[tuple[int, list[list[str]]]]:
    """The lines of each sentence as cells, and the number of the first line."""
    words: list[list[str]] = []
    begin = 0
    for number, line in enumerate(text.lines, 1):
        line = line.rstrip("\r\n")
        if not line.strip():
            if words:
                yield begin, words
            words = []
            continue
        separator = delimiter or ("\t" if "\t" in line else None)
        cells = [cell.strip(" ") for cell in line.split(separator)]
        if (
            cells[0] == DOCUMENT
            or COMMENT.match(line)
            or (conllu and (line.startswith("#") or not cells[0].isdigit()))
        ):
            continue
        begin = begin if words else number
        words.append(cells)
    if words:
        yield begin, words


def _row(text: TextFile, words: list[list[str]], conllu: bool) -> object:
    for place, cells in enumerate(words, 1):
        problem = next(filter(None, map(text.problem, cells)), None)
        if problem is not None:
            return BadRow(f"its word {place} is {problem}")
        if len(cells) != len(words[0]):
            return BadRow(
                f"its word {place} has {len(cells)} columns and its first one {len(words[0])}"
            )
    columns = [list(column) for column in zip(*words, strict=True)]
    row = {str(number): column for number, column in enumerate(columns, 1)}
    if conllu and len(columns) > max(CONLLU.values()):
        return row | {name: columns[place] for name, place in CONLLU.items()}
    row["tokens"] = columns[0]
    if len(columns) > 1:
        row["tags"] = columns[-1]
    return row
