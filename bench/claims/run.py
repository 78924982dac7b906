"""Measure a claim, seed by seed, and store the numbers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.claims import results
from bench.claims.claim import Claim, Run


def reproduce(
    claim: Claim, seeds: Iterable[int], data: Path | None, console: Console
) -> dict[str, Any]:
    """Measure some seeds of a claim; earlier seeds with the same settings are kept.

    Every seed is stored as soon as it is measured.

    data: the folder of the data sets, None if there is none.
    console: shows the progress.

    Returns what is stored in the end. Raises DataError if a data set does not exist.
    """
    runs = [Run(seed, claim.settings, data, console) for seed in seeds]
    for name in claim.data:
        runs[0].folder(name)  # refuse before minutes have passed
    numbers = results.seeds_of(claim)
    stored: dict[str, Any] = {}
    for run in runs:
        start = time.monotonic()
        numbers[run.seed] = claim.measure(run)
        stored = results.store(claim, numbers, (time.monotonic() - start) / 60)
    return stored
