"""Bad rows as tasks see them: which examples can be encoded, and why others cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inlay.data.dataset import Dataset, Example, Skipped, no_rows
from inlay.errors import DataError
from inlay.tasks.rows import Row

Encode = Callable[[Sequence[Example], int], list[Row]]
"""Encodes examples, the first of which has the given index. Raises DataError for a bad one."""


ENCODED_TOGETHER = 1000
"""How many examples one call of the tokenizer gets: enough for its threads, and for progress."""


@dataclass(frozen=True)
class Usable:
    """The examples that can be encoded, their rows, indexed among them, and the bad ones."""

    examples: list[Example]
    rows: list[Row]
    bad: list[Skipped]


def encode_usable(encode: Encode, examples: Sequence[Example], first_index: int = 0) -> Usable:
    """Encode the examples that can be.

    Examples are encoded together, for speed. Where one of them is bad, the halves are encoded by
    themselves, down to the bad one.
    """
    usable = Usable([], [], [])
    for start in range(0, len(examples), ENCODED_TOGETHER):
        _encode(encode, examples[start : start + ENCODED_TOGETHER], first_index, usable)
    return usable


def _encode(encode: Encode, examples: Sequence[Example], first: int, usable: Usable) -> None:
    if not examples:
        return
    try:
        rows = encode(examples, first + len(usable.examples))
    except DataError as error:
        if len(examples) > 1:
            half = len(examples) // 2
            _encode(encode, examples[:half], first, usable)
            _encode(encode, examples[half:], first, usable)
        else:
            where = examples[0].where
            usable.bad.append(Skipped(where, str(error).removeprefix(f"{where}: ")))
    else:
        usable.rows.extend(rows)
        usable.examples.extend(examples)


def with_usable(data: Dataset, usable: Usable) -> Dataset:
    """The data set with its usable examples only; the bad ones are added to those skipped.

    Raises DataError where none is left.
    """
    skipped = (*data.skipped, *usable.bad)
    if not usable.examples:
        raise no_rows(data.source, skipped)
    return Dataset(data.source, tuple(usable.examples), skipped)
