"""Claim: a sentence of a paper, how it is measured, and when it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from bench.claims.plots import Plot
from inlay.errors import DataError

Numbers = dict[str, float]
"""What one seed measured, by name."""

FEWEST_SEEDS = 3
"""With fewer seeds nothing is judged."""

MAJORITY = 2 / 3
"""The share of the seeds whose margin must be positive."""


@dataclass(frozen=True)
class Run:
    """One seed of one claim.

    settings: the claim's. data: the folder of the data sets, None if there is none. console: shows
    the progress.
    """

    seed: int
    settings: Mapping[str, Any]
    data: Path | None
    console: Console

    def show(self, step: str) -> None:
        """Show what is being done, on one line."""
        self.console.print(f"seed {self.seed}: {step}", highlight=False, markup=False)

    def folder(self, name: str) -> Path:
        """The folder of one data set. Raises DataError if it does not exist."""
        if self.data is None or not (self.data / name).is_dir():
            missing = (
                "there is no data folder" if self.data is None else f"{self.data} has no {name}"
            )
            raise DataError(f"{missing}; name the folder with --data FOLDER or INLAY_DATA")
        return self.data / name


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, as a measurement.

    name: of its file. paper, section: where the paper says so; no section where nobody looked it
    up. sentence: the claim, in our words.
    figures: the paper's, as text. minutes: what three seeds take on two cores. settings: every
    number of the measurement; results are stored with them. data: the data sets that it reads.
    measure: the numbers of one seed. margin: how far the numbers of one seed speak for the claim;
    0 or less speaks against it. reported: the numbers that tables show, and what they are. plot:
    draws the numbers of all seeds. tried: what else was tried, a sentence each.
    """

    name: str
    paper: str
    section: str
    sentence: str
    figures: str
    minutes: float
    settings: Mapping[str, Any]
    measure: Callable[[Run], Numbers]
    margin: Callable[[Mapping[str, float]], float]
    reported: Mapping[str, str]
    plot: Plot
    data: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()


def held(margins: Sequence[float]) -> bool | None:
    """Whether the margins are positive in the mean and in two thirds of the seeds.

    Returns None for fewer than three seeds.
    """
    if len(margins) < FEWEST_SEEDS:
        return None
    positive = sum(margin > 0 for margin in margins)
    return fmean(margins) > 0 and positive / len(margins) >= MAJORITY
