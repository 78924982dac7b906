"""inlay pet: train a classifier from few labels with PET (pattern-exploiting training)."""

from __future__ import annotations

import sys
from shlex import quote
from typing import TYPE_CHECKING

import typer

from inlay_cli.console import busy, err, out, table, write
from inlay_cli.flags import assignments
from inlay_cli.shared import (
    FreshOption,
    PrintOption,
    RecipeArgument,
    SetOption,
    examples,
    silence,
)

if TYPE_CHECKING:
    from rich.table import Table

    from inlay.training.pet.results import PetResult


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        "pet",
        rich_help_panel=panel,
        epilog=examples(
            ("inlay pet recipe.yaml", "train what a file describes"),
            ("inlay pet recipe.yaml --set generations=3", "iPET: patterns train one another"),
            ("inlay pet recipe.yaml --set data.train.shots=5", "set any field"),
            ("inlay pet recipe.yaml --print-recipe", "see every field and its value"),
        ),
    )(pet)


def pet(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006  # typer's way to say: may be given several times
    print_recipe: PrintOption = False,
    fresh: FreshOption = False,
) -> None:
    """Train a classifier from few labels, by patterns and unlabelled texts (PET).

    A model learns from the labels for each pattern; one classifier then learns from the labels
    that all of them predict for the unlabelled texts.
    """
    with busy("starting"):
        from inlay.training.loop.launch import processes
        from inlay.training.pet.pet import pet as run
        from inlay.training.pet.recipe import PetRecipe
    plan = PetRecipe.load(recipe, dict(assignments(settings)))
    if print_recipe:
        sys.stdout.write(plan.dump())
        return
    silence()
    result = run(plan, err(), resume=not fresh)
    if processes().is_main_process:  # one report, however many processes train
        _show(result)


def _show(result: PetResult) -> None:
    """Show the scores, what was trained, where it is saved, and what to type next."""
    if result.test is not None:
        out().print(_score_table(result))
    training = result.training
    write(f"the classifier: {training.steps:,} steps in {training.seconds:,.0f} s")
    for path in (result.path, result.base):
        if path is not None:
            write(f"saved in {path}")
    if result.path is not None:
        base = quote(str(result.base or result.recipe.base))
        write(f"next: inlay eval {base} {quote(str(result.path))} --data …")


def _score_table(result: PetResult) -> Table:
    """Every pattern before and after training, their ensemble, and the classifier."""
    from rich.text import Text

    metric, last = result.metric, result.generations[-1]
    rows = table(f"{metric} on test")
    rows.add_column("")
    rows.add_column("untouched", justify="right")
    rows.add_column("trained", justify="right")
    for number, untouched in enumerate(result.untouched, 1):
        scores = [m.test[metric] for m in last.models if m.pattern == number and m.test]
        before = "" if untouched.test is None else f"{untouched.test[metric]:.4f}"
        after = " ".join(f"{score:.4f}" for score in scores)
        rows.add_row(Text(repr(untouched.pattern)[1:-1]), before, after)
    spread = result.spread
    for name, label in {"mean": "mean", "sd": "standard deviation"}.items():
        rows.add_row(label, *(f"{spread[stage][name]:.4f}" for stage in ("untouched", "trained")))
    for number, generation in enumerate(result.generations, 1):
        assert generation.ensemble is not None
        suffix = "" if len(result.generations) == 1 else f", generation {number}"
        rows.add_row(f"ensemble{suffix}", "", f"{generation.ensemble[metric]:.4f}")
    assert result.test is not None
    rows.add_row("classifier", "", f"{result.test[metric]:.4f}", style="bold")
    return rows
