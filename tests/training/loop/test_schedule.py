"""The learning rate rises, falls and ends at 0."""

from itertools import pairwise

import pytest

from inlay.training.loop.schedule import lr_factor


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_rises_to_one_and_falls_to_nothing(schedule):
    factors = [lr_factor(schedule, 0.1, (step + 0.5) / 1000) for step in range(1000)]
    top = factors.index(max(factors))
    assert top in (99, 100)
    assert max(factors) == pytest.approx(1, abs=0.01)
    assert all(a < b for a, b in pairwise(factors[:100]))
    assert all(a > b for a, b in pairwise(factors[100:]))
    assert 0 < factors[-1] < 1e-3
    assert 0 < factors[0] < 0.01
    assert sum(factors) / 1000 == pytest.approx(0.5, abs=1e-3)


def test_constant_stays():
    assert lr_factor("constant", 0.5, 0.25) == 0.5
    assert lr_factor("constant", 0.0, 1.0) == 1


def test_shapes():
    assert lr_factor("linear", 0, 0.25) == 0.75
    assert lr_factor("cosine", 0, 0.5) == pytest.approx(0.5)
    assert lr_factor("cosine", 0, 0.25) == pytest.approx(0.85355, abs=1e-5)
    assert lr_factor("linear", 0.1, 1.01) == 0
