"""The learning rate over a run: a rise, then a fall to 0, as a function of the share done."""

from __future__ import annotations

import math
from typing import Literal

from inlay.core.method import Spec


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


def rates(spec: Spec, chosen: float | None, base: float | None = None) -> tuple[float, ...]:
    """The highest learning rate of each method: the one chosen for all, or its own `lr`.

    base: that of the base, which comes last; None where it does not learn.
    """
    own = tuple(method.learning_rate() if chosen is None else chosen for method in spec.methods)
    return own if base is None else (*own, base)
