"""The learning rate over a run: a rise, then a fall to 0, as a function of the share done."""

from __future__ import annotations

import math
from typing import Literal


def factor(schedule: Literal["linear", "cosine", "constant"], warmup: float, done: float) -> float:
    """What the highest rate is multiplied by when the share `done` of the run is over.

    A step is asked about in its middle, so that none has the rate 0.
    """
    if done < warmup:
        return done / warmup
    left = max(0.0, (1 - done) / (1 - warmup))
    if schedule == "linear":
        return left
    if schedule == "cosine":
        return (1 - math.cos(math.pi * left)) / 2
    return 1.0
