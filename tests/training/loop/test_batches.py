"""Batches: every row once, within the size, little padding, the same for the same seed."""

import random

from hypothesis import given
from hypothesis import strategies as st

from inlay.training.loop.batches import batches_by_length, shuffled_batches

COSTS = st.lists(st.integers(1, 50), min_size=1, max_size=200)


@given(COSTS, st.integers(1, 9), st.integers(0, 3))
def test_every_row_once_in_batches_of_so_many_rows(costs, rows, epoch):
    batches = shuffled_batches(costs, rows=rows, tokens=None, seed=1, epoch=epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(costs)))
    assert all(1 <= len(batch) <= rows for batch in batches)


@given(COSTS, st.integers(1, 200), st.integers(0, 3))
def test_no_batch_costs_more_than_its_tokens_unless_it_is_one_row(costs, tokens, epoch):
    for batches in (
        shuffled_batches(costs, rows=None, tokens=tokens, seed=1, epoch=epoch),
        batches_by_length(costs, rows=None, tokens=tokens),
    ):
        assert sorted(row for batch in batches for row in batch) == list(range(len(costs)))
        for batch in batches:
            cost = max(costs[row] for row in batch) * len(batch)
            assert cost <= tokens or len(batch) == 1


def test_seed_and_epoch_decide_the_order():
    costs = [random.Random(row).randint(1, 30) for row in range(300)]

    def batches(seed, epoch):
        return shuffled_batches(costs, rows=4, tokens=None, seed=seed, epoch=epoch)

    assert batches(0, 0) == batches(0, 0)
    assert batches(0, 0) != batches(0, 1)
    assert batches(0, 0) != batches(1, 0)


def test_little_is_padded():
    draw = random.Random(0)
    costs = [min(400, int(draw.lognormvariate(3.5, 0.8)) + 1) for _ in range(5000)]
    padded = {}
    for size in ({"rows": 16, "tokens": None}, {"rows": None, "tokens": 1024}):
        batches = shuffled_batches(costs, **size, seed=0, epoch=0)
        tokens = sum(max(costs[row] for row in batch) * len(batch) for batch in batches)
        padded[size["rows"]] = 1 - sum(costs) / tokens
    assert padded[16] < 0.08
    assert padded[None] < 0.04


def test_the_longest_rows_come_first_in_evaluation():
    assert batches_by_length([3, 9, 5], rows=1, tokens=None) == [[1], [2], [0]]
