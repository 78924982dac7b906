"""The words of a `tag` example written as a sentence, and where their tokens are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inlay.data.dataset import Example
from inlay.data.labels import label_name
from inlay.data.raw import kind_of
from inlay.errors import DataError, nearest
from inlay.tasks.rows import list_of

NUMBERED = "; name numbered tags by label_names (--task.label_names)"
"""The end of a message about tags that are numbers: the cure."""

NO_TOKEN = -1
"""The position of a word that has no token."""


@dataclass(frozen=True)
class Sentence:
    """A sentence as text. words: where each begins and ends in it, in characters."""

    text: str
    words: list[tuple[int, int]]


def sentence_of(example: Example) -> Sentence:
    """The words of an example with spaces between them.

    Its predicate comes before the sentence, and in brackets within it: "sat : the cat [ sat ]".

    Raises DataError, which names the example.
    """
    tokens = texts_in(example, "tokens")
    if not tokens:
        raise DataError(f"{example.where}: its list of tokens is empty")
    if not "".join(tokens).strip():
        raise DataError(f"{example.where}: all of its tokens are empty texts")
    predicate = _predicate(example, len(tokens))
    text = "" if predicate is None else f"{tokens[predicate]} : "
    words = []
    for number, word in enumerate(tokens):
        text += " " if number else ""
        text += "[ " if number == predicate else ""
        words.append((len(text), len(text) + len(word)))
        text += word
        text += " ]" if number == predicate else ""
    return Sentence(text, words)


def _predicate(example: Example, count: int) -> int | None:
    """The number of the word whose roles are asked for, or None."""
    if "predicate" not in example.fields:
        return None
    number = example.fields["predicate"]
    if isinstance(number, bool) or not isinstance(number, int):
        raise DataError(
            f"{example.where}: predicate is the number of a word, from 0 on, not {number!r:.80}"
        )
    if not 0 <= number < count:
        raise DataError(
            f"{example.where}: predicate={number} is none of its {count} tokens, which are "
            f"numbered from 0 to {count - 1}"
        )
    return number


def texts_in(example: Example, name: str, cure: str = "") -> list[str]:
    """A field that holds a list of texts. Raises DataError, which names the example."""
    items = list_of(example, name)
    for number, item in enumerate(items, 1):
        if not isinstance(item, str):
            kind = kind_of(item)
            raise DataError(
                f"{example.where}: {name} is a list of texts, and item {number} is {kind}{cure}"
            )
    return items


def tags_of(example: Example, names: Mapping[str, str] | None = None) -> list[str]:
    """The gold tags, one for every word.

    names: what the data calls a tag -> its name; any other tag, then a text, keeps its own.

    Raises DataError, which names the example.
    """
    tags = _named(example, names) if names else texts_in(example, "tags", NUMBERED)
    count = len(list_of(example, "tokens"))
    if len(tags) != count:
        raise DataError(
            f"{example.where}: {count} tokens and {len(tags)} tags; every token has one tag"
        )
    return tags


def gold_tags(example: Example, names: Mapping[str, str] | None) -> list[str]:
    """The gold tags of an example that may have lost its tokens, as `tags_of` has them."""
    return _named(example, names) if names else texts_in(example, "tags", NUMBERED)


def _named(example: Example, names: Mapping[str, str]) -> list[str]:
    tags = list_of(example, "tags")
    for number, tag in enumerate(tags, 1):
        if not isinstance(tag, str | int | float):
            raise DataError(
                f"{example.where}: tag {number} is {kind_of(tag)}, not text or a number"
            )
        if not isinstance(tag, str) and label_name(tag) not in names:
            known = nearest(str(tag), names)
            raise DataError(f"{example.where}: tag {number} is {tag}, which has no name{known}")
    return [names.get(label_name(tag), str(tag)) for tag in tags]


def first_tokens(
    offsets: Sequence[tuple[int, int]], words: Sequence[tuple[int, int]], shift: int
) -> tuple[int, ...]:
    """The position of the first token of each word, `shift` tokens further on, or `NO_TOKEN`.

    A token belongs to a word if it covers any character of it; a space before the word, which some
    tokenizers count in, does not matter. Both are in order, so one pass is enough.

    Args:
        offsets: where the tokens begin and end, in characters.
        words: where the words begin and end, in characters.
        shift: added to every position.
    """
    positions: list[int] = []
    token = 0
    for begin, end in words:
        while token < len(offsets) and offsets[token][1] <= begin:
            token += 1
        covers = begin < end and token < len(offsets) and offsets[token][0] < end
        positions.append(token + shift if covers else NO_TOKEN)
    return tuple(positions)
