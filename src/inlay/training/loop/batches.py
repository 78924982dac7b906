"""Batches of rows with similar lengths, in an order drawn from the seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

BUCKET = 64
"""How many batches' worth of shuffled rows are sorted by length together."""


def shuffled_batches(
    costs: Sequence[int], *, rows: int | None, tokens: int | None, seed: int, epoch: int
) -> list[list[int]]:
    """The batches of an epoch, as row numbers: every row once.

    Rows are shuffled, cut into buckets, sorted by length within each, and cut into batches; then
    the batches are shuffled. The same arguments give the same batches on every machine.

    Args:
        costs: the number of tokens of every row.
        rows: rows in a batch; None where `tokens` decides.
        tokens: the most that a batch costs: its longest row times its number of rows.
        seed: of the order.
        epoch: the number of the epoch; each has its own order.
    """
    generator = random.Random(f"{seed}/{epoch}")
    order = list(range(len(costs)))
    generator.shuffle(order)
    if rows is None:
        assert tokens is not None
        size = max(1, tokens * len(costs) // max(1, sum(costs)))
    else:
        size = rows
    size *= BUCKET
    batches: list[list[int]] = []
    for start in range(0, len(order), size):
        bucket = sorted(order[start : start + size], key=costs.__getitem__)
        batches += split(bucket, costs, rows, tokens)
    generator.shuffle(batches)
    return batches


def batches_by_length(
    costs: Sequence[int], *, rows: int | None, tokens: int | None
) -> list[list[int]]:
    """All rows in batches, longest first, so that a lack of memory shows in the first batch."""
    order = sorted(range(len(costs)), key=costs.__getitem__, reverse=True)
    return split(order, costs, rows, tokens)


def split(
    order: Sequence[int], costs: Sequence[int], rows: int | None, tokens: int | None
) -> list[list[int]]:
    """Split row numbers, in their order, into batches of at most this size."""
    batches: list[list[int]] = []
    batch: list[int] = []
    longest = 0
    for row in order:
        longest = max(longest, costs[row])
        full = len(batch) == rows if tokens is None else (len(batch) + 1) * longest > tokens
        if batch and full:
            batches.append(batch)
            batch, longest = [], costs[row]
        batch.append(row)
    return [*batches, batch] if batch else batches
