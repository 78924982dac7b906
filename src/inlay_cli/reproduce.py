"""inlay reproduce: what the papers claim, and what was measured here."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay_cli.console import busy, err, out
from inlay_cli.shared import examples, silence, table

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
"""The repository, where this is one: the claims are not part of the installed package."""

CLAIMS = Path("bench") / "claims"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog=examples(
            ("inlay reproduce", "all claims: the paper's figures beside ours"),
            ("inlay reproduce ptuning_encoder", "measure one anew, with three seeds"),
            ("inlay reproduce ptuning_encoder --seed 3", "one more seed beside those"),
        )
    )(reproduce)


def reproduce(
    claim: Annotated[
        str | None,
        typer.Argument(metavar="CLAIM", help="Measure this one.", show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Measure the seeds from 0 on.")] = 3,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Measure this seed alone.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="INLAY_DATA",
            help="The folder of the data sets; by default shared/data beside the checkout.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure what a paper claims, on a small model, or list what was measured."""
    with busy("reading the claims"):
        claims = _claims()
        results = import_module("bench.claims.results")
        made = {one: claims.claim(one) for one in (claims.names() if claim is None else [claim])}
    if claim is None:
        _list(made, results)
        return
    one = made[claim]
    silence()
    chosen = range(seeds) if seed is None else [seed]
    err().print(
        f"{len(chosen)} seed(s); three take about {one.sized:g} minutes on two cores",
        markup=False,
    )
    stored = import_module("bench.claims.run").reproduce(one, chosen, _data(data), err())
    _tell(one, stored, results)


def _claims() -> ModuleType:
    """The package of the claims. Raises FetchError where this is no repository."""
    if not (ROOT / CLAIMS).is_dir():
        from inlay.errors import FetchError

        raise FetchError(
            "the claims are in the repository of inlay, not in the installed package; clone it "
            "and pip install -e it"
        )
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return import_module("bench.claims")


def _data(given: Path | None) -> Path | None:
    """The folder of the data sets, if there is one. Raises DataError where a named one is not."""
    if given is not None:
        if not given.is_dir():
            from inlay.errors import DataError

            raise DataError(f"{given} is no folder; --data and INLAY_DATA name that of the data")
        return given
    beside = ROOT.parent / "shared" / "data"
    return beside if beside.is_dir() else None


def _list(claims: dict[str, Any], results: Any) -> None:
    from rich.markup import escape

    shown = table()
    shown.add_column("claim", style="bold cyan", no_wrap=True)
    shown.add_column("paper", style="dim", max_width=22)
    shown.add_column("the paper's figures", max_width=40)
    shown.add_column("ours")
    shown.add_column("seeds", justify="right")
    shown.add_column("held", justify="center")
    for name, one in claims.items():
        stored = results.read(name)
        ours = ("[dim]not measured", "", _mark(None)) if stored is None else _ours(stored, results)
        shown.add_row(name, escape(one.paper), escape(one.figures), *ours)
    out().print(shown)
    out().print("What one says and how it is measured: docs/claims.md, bench/claims/")


def _ours(stored: dict[str, Any], results: Any) -> tuple[str, str, str]:
    return results.told(stored), str(len(stored["seeds"])), _mark(stored["held"])


def _mark(held: bool | None) -> str:
    return {True: "[green]yes", False: "[red]no", None: "[dim]–"}[held]


def _tell(one: Any, stored: dict[str, Any], results: Any) -> None:
    """What was found, and where it is."""
    said = {True: "it held", False: "it did not hold", None: "too few seeds to judge"}
    lines = [
        one.sentence,
        f"the paper: {one.figures}",
        f"ours: {results.told(stored)} ({len(stored['seeds'])} seeds)",
        f"{said[stored['held']]}; stored in {results.FOLDER / (one.name + '.json')}",
    ]
    for line in lines:
        out().print(line, markup=False, soft_wrap=True)
    seeds = {int(seed): numbers for seed, numbers in stored["seeds"].items()}
    drawn = results.draw(one, seeds)
    out().print(f"drawn in {drawn}", markup=False, soft_wrap=True)
