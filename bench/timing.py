"""Times of functions that take turns, so that other load on the machine affects all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median

import torch

Run = Callable[[], object]

_clock: Callable[[], float] = time.perf_counter


@contextmanager
def processor_seconds() -> Iterator[None]:
    """Count the processor's seconds, not those of the clock, where other work shares the machine.

    With several threads their seconds are added up.
    """
    global _clock
    before, _clock = _clock, time.process_time
    try:
        yield
    finally:
        _clock = before


class Times:
    """Seconds of every function in every round: `seconds[name][round]`."""

    def __init__(self, seconds: Mapping[str, list[float]]):
        self.seconds = dict(seconds)

    def median(self, name: str) -> float:
        """The median of a function's times, in seconds."""
        return median(self.seconds[name])

    def pairs(self, name: str, other: str) -> tuple[tuple[float, float], ...]:
        """The seconds of two functions, round by round."""
        return tuple(zip(self.seconds[name], self.seconds[other], strict=True))


def synchronise() -> None:
    """Wait until the accelerator, if there is one, has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(run: Run) -> float:
    """The seconds of one run, wall-clock unless `processor_seconds` says otherwise."""
    synchronise()
    start = _clock()
    run()
    synchronise()
    return _clock() - start


def take_turns(runs: Mapping[str, Run], rounds: int, warm: int = 2) -> Times:
    """Run every function `warm` times untimed, then once in each round.

    Rounds go through the functions forwards and backwards in turn.
    """
    for run in runs.values():
        for _ in range(warm):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        order = list(runs) if number % 2 == 0 else list(reversed(runs))
        for name in order:
            seconds[name].append(timed(runs[name]))
    return Times(seconds)
