"""Times of several things that take turns, so that other load on the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

Run = Callable[[], object]


class Times:
    """Seconds of every thing in every round: `seconds[name][round]`."""

    def __init__(self, seconds: Mapping[str, list[float]]):
        self.seconds = dict(seconds)

    def median(self, name: str) -> float:
        """The middle one of its times, in seconds."""
        return median(self.seconds[name])

    def pairs(self, name: str, other: str) -> tuple[tuple[float, float], ...]:
        """The seconds of two things, round by round."""
        return tuple(zip(self.seconds[name], self.seconds[other], strict=True))


def synchronise() -> None:
    """Wait until the accelerator, where there is one, has done what it was asked to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clocked(run: Run) -> float:
    """The seconds of wall-clock time that one run takes."""
    synchronise()
    begun = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - begun


def take_turns(runs: Mapping[str, Run], rounds: int, warm: int = 2) -> Times:
    """Run everything `warm` times, then in `rounds` rounds, each in turn forwards or backwards."""
    for run in runs.values():
        for _ in range(warm):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        order = list(runs) if number % 2 == 0 else list(reversed(runs))
        for name in order:
            seconds[name].append(clocked(runs[name]))
    return Times(seconds)
