"""Measure a claim, seed after seed, and store what was found."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.claims import results
from bench.claims.base import Claim, Run


def reproduce(
    claim: Claim, seeds: Iterable[int], data: Path | None, console: Console
) -> dict[str, Any]:
    """Measure these seeds, beside those measured before with the same settings.

    Every seed is stored as soon as it is measured. Returns what is stored in the end. Raises
    DataError where the data that the claim needs are not there.
    """
    runs = [Run(seed, claim.settings, data, console) for seed in seeds]
    for name in claim.needs:
        runs[0].folder(name)  # refuse before minutes have passed
    known = results.seeds_of(claim)
    stored: dict[str, Any] = {}
    for run in runs:
        begun = time.monotonic()
        known[run.seed] = claim.measure(run)
        stored = results.store(claim, known, (time.monotonic() - begun) / 60)
    return stored
