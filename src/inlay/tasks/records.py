"""Records: predictions with all that a user may want to know of them, as columns of a table.

    {"prediction": "good", "probability": 0.93, "probabilities": {"bad": 0.07, "good": 0.93}}

`Task.predict` gives what is scored, a record what is read by people and by other programs. Every
record has a `prediction`, the same as that of `predict`; what else it has depends on the task and
is described by `Task.record_columns`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from inlay.tasks.spans import single_words, spans

Record = dict[str, Any]
"""A prediction by column."""

PREDICTION = "prediction"

Kind = Literal["text", "texts", "integer", "number", "numbers", "by label", "entities", "json"]
"""What a column holds: a text, a list of texts, a whole number, a number, a list of numbers, a
number for each label, a list of entities, or anything that JSON can write."""


@dataclass(frozen=True)
class Column:
    """One column of a task's records.

    name: in the record. kind: what it holds. meaning: for people. labels: of "by label".
    """

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mistake:
    """A prediction that is wrong.

    cost: how wrong it is; comparable within a task. gold: the right answer, as it is shown.
    """

    cost: float
    gold: Any


def probabilities(scores: Tensor, temperature: float) -> Tensor:
    """The softmax of scores `[..., C]` over C, divided by a temperature first."""
    return torch.softmax(scores / temperature, -1)


def by_label(labels: Sequence[str], shares: Sequence[float]) -> dict[str, float]:
    """A number for each label."""
    return dict(zip(labels, shares, strict=True))


def surprise(probability: float) -> float:
    """−log p, at most 100."""
    return -math.log(max(probability, 1e-43))


# ------------------------------------------------------------------------------ entities in texts

WORD = re.compile(r"\w+|[^\w\s]")
"""A word: letters and digits, or one other character."""


def split_words(text: str) -> list[str]:
    """The words of a text; every mark of punctuation is a word of its own."""
    return WORD.findall(text)


def word_places(words: Sequence[str], text: str | None) -> tuple[str, list[tuple[int, int]]]:
    """A text that holds these words, and where each begins and ends in it, in characters.

    text: the original one, where it is known. Where a word is not found in it, in order, the text
    is that of the words with a space between them.
    """
    places: list[tuple[int, int]] = []
    if text is not None:
        end = 0
        for word in words:
            begin = text.find(word, end)
            if begin < 0:
                break
            end = begin + len(word)
            places.append((begin, end))
        else:
            return text, places
        places = []
    end = -1
    for word in words:
        places.append((end + 1, end + 1 + len(word)))
        end = places[-1][1]
    return " ".join(words), places


def entities(
    words: Sequence[str],
    tags: Sequence[str],
    shares: Sequence[float],
    *,
    text: str | None,
    plain: bool,
) -> list[Record]:
    """The spans that tags mark, in the order of the text.

    Args:
        words: of the sentence.
        tags: one for each word.
        shares: the probability of each tag.
        text: the sentence as it was written, where it is known; see `word_places`.
        plain: whether every word that is not outside is a span of its own.

    Returns for each its text, label, first character, the character after its last, and its score,
    the mean probability of its words' tags.
    """
    written, places = word_places(words, text)
    marked = single_words(tags) if plain else spans(tags)
    result: list[Record] = []
    for label, first, last in sorted(marked, key=lambda span: span[1:]):
        begin, end = places[first][0], places[last][1]
        score = sum(shares[first : last + 1]) / (last + 1 - first)
        result.append(
            {"text": written[begin:end], "label": label, "start": begin, "end": end, "score": score}
        )
    return result
