"""The memory of tensors that are alive at once."""

import pytest
import torch

from bench.live import MIB, live


def test_tensors_count_while_they_are_alive():
    kept = []

    def run():
        kept.append(torch.ones(MIB // 4))
        for _ in range(3):
            torch.ones(2 * MIB // 4)  # gone before the next one

    assert live(run) == pytest.approx(3, abs=0.1)
