"""The learning rate over a run: a warm-up, then a decay to 0."""

from __future__ import annotations

import math
from typing import Literal


def lr_factor(
    schedule: Literal["linear", "cosine", "constant"], warmup: float, progress: float
) -> float:
    """What the highest learning rate is multiplied by.

    Args:
        schedule: the form of the decay.
        warmup: the share of the run in which the learning rate rises, from 0 to below 1.
        progress: how much of the run is done, from 0 to 1. The loop gives that of the middle of a
            step, so that no step has the learning rate 0.
    """
    if progress < warmup:
        return progress / warmup
    remaining = max(0.0, (1 - progress) / (1 - warmup))
    if schedule == "linear":
        return remaining
    if schedule == "cosine":
        return (1 - math.cos(math.pi * remaining)) / 2
    return 1.0
