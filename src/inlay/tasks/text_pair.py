"""The special tokens around and between two texts in one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inlay.tasks.base import Bound
from inlay.tasks.special_tokens import special_tokens_around

TypedToken = tuple[int, int]
"""A token and its token type: which of two texts it belongs to."""


@dataclass(frozen=True)
class TextPair:
    """The special tokens before, between and after two texts, and the types of the texts."""

    before: list[TypedToken]
    between: list[TypedToken]
    after: list[TypedToken]
    types: tuple[int, int]

    @property
    def length(self) -> int:
        """How many special tokens there are."""
        return len(self.before) + len(self.between) + len(self.after)

    def join(self, first: Sequence[int], second: Sequence[int]) -> tuple[list[TypedToken], int]:
        """The row of two texts, and the position where the second one begins."""
        first_type, second_type = self.types
        start = [*self.before, *((token, first_type) for token in first), *self.between]
        return [*start, *((token, second_type) for token in second), *self.after], len(start)


def one_text(bound: Bound) -> TextPair:
    """How a decoder reads two texts: as one."""
    before, after = special_tokens_around(bound.tokenizer)
    return TextPair([(i, 0) for i in before], [], [(i, 0) for i in after], (0, 0))


def two_texts(bound: Bound) -> TextPair:
    """How the tokenizer itself joins two texts."""
    encoding = bound.tokenizer("a", "a", return_token_type_ids=True)
    owners, types = encoding.sequence_ids(0), encoding["token_type_ids"]
    tokens = list(zip(encoding["input_ids"], types, strict=True))
    first, second = owners.index(0), owners.index(1)
    first_end = len(owners) - owners[::-1].index(0)
    second_end = len(owners) - owners[::-1].index(1)
    return TextPair(
        tokens[:first],
        tokens[first_end:second],
        tokens[second_end:],
        (types[first], types[second]),
    )
