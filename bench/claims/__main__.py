"""List what the papers claim and what was measured, or measure one claim."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from bench.claims import results
from bench.claims.claim import Claim
from bench.claims.papers import CLAIMS, find
from bench.claims.run import reproduce
from bench.data import data_folder
from inlay.errors import InlayError
from inlay_cli.console import err, fail, out, table
from inlay_cli.shared import silence

EXAMPLES = """examples:
  python -m bench.claims                            all claims: the papers' figures and ours
  python -m bench.claims ptuning_encoder            measure one again, with three seeds
  python -m bench.claims ptuning_encoder --seed 3   add one seed to those
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, and return its exit code."""
    options = _parse(arguments)
    try:
        if options.claim is None:
            _list(CLAIMS)
        else:
            claim = find(options.claim)
            seeds = range(options.seeds) if options.seed is None else [options.seed]
            _measure(claim, seeds, data_folder(options.data))
    except InlayError as error:
        fail(str(error))
        return 2
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.claims",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("claim", nargs="?", metavar="CLAIM", help="measure this claim")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 on (3)")
    parser.add_argument("--seed", type=int, help="measure this seed alone")
    parser.add_argument(
        "--data",
        type=Path,
        help="the folder of the data sets (the variable INLAY_DATA, or shared/data next to the "
        "checkout)",
    )
    options = parser.parse_args(arguments)
    if options.seeds < 1 or (options.seed is not None and options.seed < 0):
        parser.error("--seeds must be at least 1, and --seed at least 0")
    return options


def _list(claims: Mapping[str, Claim]) -> None:
    """Show every claim with the paper's figures and ours."""
    rows = table()
    rows.add_column("claim", style="bold cyan", no_wrap=True)
    rows.add_column("paper", style="dim", max_width=22)
    rows.add_column("the paper's figures", max_width=40)
    rows.add_column("ours")
    rows.add_column("seeds", justify="right")
    rows.add_column("held", justify="center")
    for name, claim in claims.items():
        stored = results.read(name)
        ours = ("[dim]not measured", "", _mark(None)) if stored is None else _ours(stored)
        rows.add_row(name, escape(claim.paper), escape(claim.figures), *ours)
    out().print(rows)
    out().print("What each says and how it is measured: docs/claims.md, bench/claims/papers/")


def _ours(stored: Mapping[str, Any]) -> tuple[str, str, str]:
    return results.summary(stored), str(len(stored["seeds"])), _mark(stored["held"])


def _mark(held: bool | None) -> str:
    return {True: "[green]yes", False: "[red]no", None: "[dim]–"}[held]


def _measure(claim: Claim, seeds: Sequence[int], data: Path | None) -> None:
    """Measure some seeds of a claim, and show whether it held and where the results are."""
    silence()
    err().print(
        f"{len(seeds)} seed(s); three take about {claim.minutes:g} minutes on two cores",
        markup=False,
    )
    stored = reproduce(claim, seeds, data, err())
    verdict = {True: "it held", False: "it did not hold", None: "too few seeds to judge"}
    lines = [
        claim.sentence,
        f"the paper: {claim.figures}",
        f"ours: {results.summary(stored)} ({len(stored['seeds'])} seeds)",
        f"{verdict[stored['held']]}; stored in {results.FOLDER / (claim.name + '.json')}",
    ]
    for line in lines:
        out().print(line, markup=False, soft_wrap=True)
    numbers = {int(seed): of_seed for seed, of_seed in stored["seeds"].items()}
    out().print(f"plotted in {results.draw(claim, numbers)}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
