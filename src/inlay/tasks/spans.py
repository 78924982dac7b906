"""Tags of words, and the spans that they mark, as conlleval counts them."""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[str, int, int]
"""A type, the first word of that type, and the last."""

OUTSIDE = "O"
"""The tag of a word that belongs to nothing."""

LETTERS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}
"""The letters before a type in IOB1, IOB2, IOE, BIOES, BILOU and BMES, and those of BIOES."""


def split_tag(tag: str) -> tuple[str, str] | None:
    """A tag as its letter in BIOES and its type; None for outside.

    Raises ValueError for a tag that is neither "O" nor a letter of `LETTERS`, with a type or bare.
    """
    if tag == OUTSIDE:
        return None
    letter, dash, kind = tag.partition("-")
    if letter not in LETTERS or (dash and not kind):
        raise ValueError(tag)
    return LETTERS[letter], kind


def spans(tags: Sequence[str]) -> set[Span]:
    """The spans of one row of tags, in any of the schemes, as conlleval finds them.

    A word continues the span before it if it is an I or E after a B or I of the same type; any
    other word that is not outside begins a span, whatever its letter.
    """
    result: list[Span] = []
    previous: tuple[str, str] | None = None
    for place, tag in enumerate(tags):
        current = split_tag(tag)
        if current is not None:
            letter, kind = current
            continues = letter in "IE" and previous is not None and previous[0] in "BI"
            if continues and previous is not None and previous[1] == kind:
                result[-1] = (kind, result[-1][1], place)
            else:
                result.append((kind, place, place))
        previous = current
    return set(result)


def single_words(tags: Sequence[str]) -> set[Span]:
    """Every word that is not outside as a span of its own."""
    return {(tag, place, place) for place, tag in enumerate(tags) if tag != OUTSIDE}
