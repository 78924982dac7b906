"""Claim: what a paper says, how it is measured, and when it held."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from inlay.errors import DataError

Numbers = dict[str, float]
"""What one seed gave, by name."""

ENOUGH = 3
"""Seeds below which nothing is judged."""

SHARE = 2 / 3
"""The share of the seeds in which the sign must be right."""


@dataclass(frozen=True)
class Run:
    """One seed of one claim.

    settings: the claim's. data: the folder of the data sets, None where there is none. console:
    where progress is shown.
    """

    seed: int
    settings: Mapping[str, Any]
    data: Path | None
    console: Console

    def say(self, what: str) -> None:
        """Show one line."""
        self.console.print(f"seed {self.seed}: {what}", highlight=False, markup=False)

    def folder(self, name: str) -> Path:
        """The folder of one data set. Raises DataError where it is not there."""
        if self.data is None or not (self.data / name).is_dir():
            where = (
                "no data folder was found" if self.data is None else f"{self.data} has no {name}"
            )
            raise DataError(f"{where}; name the folder with --data FOLDER or INLAY_DATA")
        return self.data / name


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper, as a measurement.

    name: that of its file. paper, section: where it stands. sentence: the claim, in our words.
    figures: the paper's own, as text. sized: minutes that three seeds take on two cores.
    settings: every number of the measurement, so that results say what they were made with.
    needs: the folders of the data it reads. measure: the numbers of one seed. margin: how far
    the numbers of one seed speak for the claim; it speaks against it at 0 and below. told: the
    numbers worth a line in a table, and what they are. plot: draws the seeds' numbers into axes.
    tried: what else was tried, in a sentence each.
    """

    name: str
    paper: str
    section: str
    sentence: str
    figures: str
    sized: float
    settings: Mapping[str, Any]
    measure: Callable[[Run], Numbers]
    margin: Callable[[Mapping[str, float]], float]
    told: Mapping[str, str]
    plot: Callable[[Any, Sequence[Numbers]], None]
    needs: tuple[str, ...] = ()
    tried: tuple[str, ...] = field(default=())


def held(margins: Sequence[float]) -> bool | None:
    """Whether the sign is right in the mean and in two thirds of the seeds.

    None where there are too few seeds to say.
    """
    if len(margins) < ENOUGH:
        return None
    right = sum(margin > 0 for margin in margins)
    return fmean(margins) > 0 and right / len(margins) >= SHARE


# ------------------------------------------------------------------------------ ways to plot


def bars(**labels: str) -> Callable[[Any, Sequence[Numbers]], None]:
    """A plot of one bar per number, with every seed as a point; number -> label."""

    def plot(axes: Any, seeds: Sequence[Numbers]) -> None:
        for place, name in enumerate(labels):
            values = [numbers[name] for numbers in seeds]
            axes.bar(place, fmean(values), color="0.8")
            axes.plot([place] * len(values), values, "k.", alpha=0.6)
        axes.set_xticks(range(len(labels)), list(labels.values()))

    return plot


def curves(
    x: str, at: Sequence[float], logarithmic: bool = False, **prefixes: str
) -> Callable[[Any, Sequence[Numbers]], None]:
    """A plot of one curve per prefix, whose points are the numbers `prefix` + x; prefix -> label.

    Every seed is a thin line, the mean a thick one.
    """

    def plot(axes: Any, seeds: Sequence[Numbers]) -> None:
        for number, (prefix, label) in enumerate(prefixes.items()):
            names = [f"{prefix}{value:g}" for value in at]
            for numbers in seeds:
                axes.plot(at, [numbers[name] for name in names], f"C{number}-", alpha=0.3)
            means = [fmean(numbers[name] for numbers in seeds) for name in names]
            axes.plot(at, means, f"C{number}o-", label=label)
        if logarithmic:
            axes.set_xscale("log")
        axes.set_xticks(at, [f"{value:g}" for value in at])
        axes.set_xlabel(x)
        axes.legend()

    return plot
