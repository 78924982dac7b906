"""Which rows go together: batches of rows of like length, in an order drawn from the seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

BUCKET = 64
"""How many batches' worth of shuffled rows are sorted by length together."""


def shuffled(
    costs: Sequence[int], *, rows: int | None, tokens: int | None, seed: int, epoch: int
) -> list[list[int]]:
    """The batches of an epoch, as row numbers: every row once.

    costs: the tokens of every row. rows: how many rows a batch, or tokens: the most that a batch
    costs, its longest row times its rows.

    Rows are shuffled, cut into buckets, sorted within each, cut into batches; then the batches are
    shuffled. The same arguments give the same batches on every machine.
    """
    draw = random.Random(f"{seed}/{epoch}")
    order = list(range(len(costs)))
    draw.shuffle(order)
    if rows is None:
        assert tokens is not None
        size = max(1, tokens * len(costs) // max(1, sum(costs)))
    else:
        size = rows
    size *= BUCKET
    batches: list[list[int]] = []
    for start in range(0, len(order), size):
        bucket = sorted(order[start : start + size], key=costs.__getitem__)
        batches += cut(bucket, costs, rows, tokens)
    draw.shuffle(batches)
    return batches


def by_length(costs: Sequence[int], *, rows: int | None, tokens: int | None) -> list[list[int]]:
    """All rows in batches, longest first: what memory cannot hold is found out at once."""
    order = sorted(range(len(costs)), key=costs.__getitem__, reverse=True)
    return cut(order, costs, rows, tokens)


def cut(
    order: Sequence[int], costs: Sequence[int], rows: int | None, tokens: int | None
) -> list[list[int]]:
    """Row numbers, in their order, as batches that keep to the size."""
    batches: list[list[int]] = []
    batch: list[int] = []
    widest = 0
    for row in order:
        widest = max(widest, costs[row])
        full = len(batch) == rows if tokens is None else (len(batch) + 1) * widest > tokens
        if batch and full:
            batches.append(batch)
            batch, widest = [], costs[row]
        batch.append(row)
    return [*batches, batch] if batch else batches
