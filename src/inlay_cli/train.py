"""inlay train: a recipe, from a file, from flags, or from both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inlay_cli.console import busy, err, out
from inlay_cli.flags import flags, pairs, with_flags
from inlay_cli.shared import (
    FreshOption,
    PrintOption,
    SetOption,
    SkipOption,
    examples,
    silence,
    table,
)

if TYPE_CHECKING:
    from rich.table import Table

    from inlay.training.recipes.cross_validation import Validated
    from inlay.training.recipes.ensemble import Voted
    from inlay.training.recipes.run import Outcome


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "train",
        help="Teach a task: train the pieces of a recipe, and save them in one file.",
        epilog=examples(
            ("inlay train recipe.yaml", "do what a file says"),
            ("inlay train recipe.yaml --lr 1e-4 --minutes 5", "with other numbers"),
            ('inlay train recipe.yaml --method "Prefix(length=10)" --out runs/prefix', "compare"),
            ("inlay train recipe.yaml --set data.train.columns.text=review", "any field at all"),
            ("inlay train recipe.yaml --print-recipe", "see every field, with its default"),
        ),
    )(with_flags(train, flags("train")))


def train(
    given: dict[str, str],
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE", help="A YAML file.", show_default=False),
    ] = None,
    settings: SetOption = [],  # noqa: B006  # typer's way to say: may be given several times
    print_recipe: PrintOption = False,
    skip_bad_rows: SkipOption = False,
    fresh: FreshOption = False,
) -> None:
    """Teach a task: train the pieces of a recipe, and save them in one file.

    A run that was stopped goes on where it stood when the same command is given again.
    """
    if recipe is None and not given and not settings:
        raise typer.BadParameter("give a RECIPE, or at least --base, --method, --task and --train")
    changes = {**given, **dict(pairs(settings))}
    with busy("starting"):
        from inlay.training.recipes.cross_validation import cross_validate
        from inlay.training.recipes.recipe import Recipe
        from inlay.training.recipes.run import run
    made = Recipe.load(recipe, changes)
    if skip_bad_rows:
        parts = made.data.model_dump(exclude_none=True)
        made = Recipe.load(recipe, changes | {f"data.{part}.skip_bad": "true" for part in parts})
    if print_recipe:
        sys.stdout.write(made.dump())
        return
    silence()
    if made.folds is not None and made.fold is None:
        validated = cross_validate(made, err(), resume=not fresh)
        out().print(_folds(validated))
        out().print(f"saved in {validated.path}", markup=False, soft_wrap=True)
        return
    outcome = run(made, err(), resume=not fresh)
    _told(outcome)


def _told(outcome: Outcome) -> None:
    """What came out, and what to type next."""
    console = out()
    found = {"untouched": outcome.untouched, "dev": outcome.dev, "test": outcome.test}
    scores = {name: measured for name, measured in found.items() if measured is not None}
    if scores:
        shown = table()
        shown.add_column("")
        for name in scores:
            shown.add_column(name, justify="right")
        for metric in next(iter(scores.values())):
            style = "bold" if metric == outcome.metric else ""
            shown.add_row(metric, *(f"{s[metric]:.4f}" for s in scores.values()), style=style)
        console.print(shown)
    if outcome.voted is not None:
        console.print(_votes(outcome.voted, outcome.metric))
    went, share = outcome.training, outcome.parameters / outcome.of
    console.print(
        f"{went.steps:,} steps in {went.seconds:,.0f} s (ended by {went.stopped}), "
        f"{outcome.parameters:,} numbers learned ({share:.3%} of the base)",
        soft_wrap=True,
    )
    if outcome.path is not None:
        size = outcome.path.stat().st_size / 1024
        console.print(f"saved in {outcome.path} ({size:,.0f} kB)", markup=False, soft_wrap=True)
    base = outcome.base or outcome.recipe.base
    if outcome.path is None:
        following = f"eval {base} --recipe {Path(outcome.recipe.out) / 'recipe.yaml'} --data …"
    elif outcome.recipe.task["kind"] == "generate":
        following = f'generate {base} {outcome.path} "…"'
    else:
        following = f"eval {base} {outcome.path} --data …"
    console.print(f"next: inlay {following}", markup=False, soft_wrap=True)


def _folds(validated: Validated) -> Table:
    """What the inlay of each fold scores on it, and their mean and standard deviation."""
    shown = table("Cross-validation")
    shown.add_column("")
    parts = {f"fold {number}": one for number, one in enumerate(validated.scores, 1)}
    parts |= {"mean": validated.mean, "sd": validated.sd}
    for name in parts:
        shown.add_column(name, justify="right")
    for metric in validated.mean:
        style = "bold" if metric == validated.metric else ""
        shown.add_row(metric, *(f"{s[metric]:.4f}" for s in parts.values()), style=style)
    return shown


def _votes(voted: Voted, metric: str) -> Table:
    """What each member scores, their mean, and what they score together."""
    shown = table("The ensemble")
    shown.add_column("")
    singles = {f"member {number}": one for number, one in enumerate(voted.singles, 1)}
    parts = {**singles, "mean": voted.mean, "vote": voted.ensemble}
    for name in parts:
        shown.add_column(name, justify="right")
    shown.add_row(metric, *(f"{scores[metric]:.4f}" for scores in parts.values()), style="bold")
    return shown
