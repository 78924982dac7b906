"""The special tokens around two texts in one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inlay.tasks.base import Bound
from inlay.tasks.rows import around


@dataclass(frozen=True)
class Frame:
    """The special tokens around a question and its context, each with the kind of its text.

    kinds: those of question and context.
    """

    before: list[tuple[int, int]]
    between: list[tuple[int, int]]
    behind: list[tuple[int, int]]
    kinds: tuple[int, int]

    @property
    def length(self) -> int:
        """How many they are."""
        return len(self.before) + len(self.between) + len(self.behind)

    def fill(
        self, question: Sequence[int], context: Sequence[int]
    ) -> tuple[list[tuple[int, int]], int]:
        """Tokens and kinds of a row, and where its context begins."""
        a, b = self.kinds
        front = [*self.before, *((token, a) for token in question), *self.between]
        return [*front, *((token, b) for token in context), *self.behind], len(front)


def framed_text(bound: Bound) -> Frame:
    """A decoder's way: question and context are one text."""
    before, behind = around(bound.tokenizer)
    return Frame([(i, 0) for i in before], [], [(i, 0) for i in behind], (0, 0))


def framed_pair(bound: Bound) -> Frame:
    """The tokenizer's own way with two texts."""
    read = bound.tokenizer("a", "a", return_token_type_ids=True)
    owners, kinds = read.sequence_ids(0), read["token_type_ids"]
    tokens = list(zip(read["input_ids"], kinds, strict=True))
    first, second = owners.index(0), owners.index(1)
    last = len(owners) - owners[::-1].index(0)
    end = len(owners) - owners[::-1].index(1)
    return Frame(tokens[:first], tokens[last:second], tokens[end:], (kinds[first], kinds[second]))
