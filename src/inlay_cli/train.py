"""inlay train: train what a recipe describes, from a file, from flags, or from both."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import typer

from inlay_cli.console import busy, err, out, table, write
from inlay_cli.flags import assignments, flags, with_flags
from inlay_cli.shared import (
    RECIPE,
    FreshOption,
    OptionalRecipeArgument,
    PrintOption,
    SetOption,
    SkipOption,
    examples,
    silence,
)

if TYPE_CHECKING:
    from rich.table import Table

    from inlay.training.recipes.cross_validation import CrossValidation
    from inlay.training.recipes.ensemble import EnsembleResult
    from inlay.training.recipes.outcome import Outcome
    from inlay.training.recipes.recipe import Recipe

Scores = Mapping[str, float]


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        "train",
        rich_help_panel=panel,
        epilog=examples(
            ("inlay train recipe.yaml", "train what a file describes"),
            ("inlay train recipe.yaml --lr 1e-4 --minutes 5", "with other values"),
            ('inlay train recipe.yaml --method "Prefix(length=10)" --out runs/prefix', "compare"),
            ("inlay train recipe.yaml --method diagonal.py:Diagonal", "a method of your own"),
            ("inlay train recipe.yaml --set data.train.columns.text=review", "set any field"),
            ("inlay train recipe.yaml --print-recipe", "see every field and its value"),
            (
                "inlay train --base smollm2 --method LoRA --task generate --train rows.jsonl "
                "--out runs/lora",
                "without a file",
            ),
        ),
    )(with_flags(train, flags("train")))


def train(
    fields: dict[str, str],
    recipe: OptionalRecipeArgument = None,
    settings: SetOption = [],  # noqa: B006  # typer's way to say: may be given several times
    print_recipe: PrintOption = False,
    skip_bad_rows: SkipOption = False,
    fresh: FreshOption = False,
) -> None:
    """Train the pieces of a recipe on a task, and save them in one file.

    Every field of the recipe is also an option, which wins over the file. A run that was stopped
    resumes if the same command is given again.
    """
    if recipe is None and not fields and not settings:
        raise typer.BadParameter("give a RECIPE, or at least --base, --method, --task and --train")
    with busy("starting"):
        from inlay.training.loop.launch import processes
        from inlay.training.recipes.cross_validation import cross_validate
        from inlay.training.recipes.run import run
    plan = _load(recipe, {**fields, **dict(assignments(settings))}, skip_bad_rows)
    if print_recipe:
        sys.stdout.write(plan.dump())
        return
    silence()
    if plan.folds is not None and plan.fold is None:
        validated = cross_validate(plan, err(), resume=not fresh)
        if processes().is_main_process:
            out().print(_fold_table(validated))
            write(f"saved in {validated.path}")
        return
    outcome = run(plan, err(), resume=not fresh)
    if processes().is_main_process:  # one report, however many processes train
        _show(outcome)


def _load(path: Path | None, changes: dict[str, str], skip_bad_rows: bool) -> Recipe:
    from inlay.training.recipes.recipe import Recipe

    recipe = Recipe.load(path, changes)
    if not skip_bad_rows:
        return recipe
    parts = recipe.data.parts()
    return Recipe.load(path, changes | {f"data.{part}.skip_bad": "true" for part in parts})


def _show(outcome: Outcome) -> None:
    """Show the scores, what was trained, where it is saved, and what to type next."""
    parts = {"untouched": outcome.untouched, "dev": outcome.dev, "test": outcome.test}
    scores = {part: of_part for part, of_part in parts.items() if of_part is not None}
    if scores:
        out().print(_score_table("", scores, outcome.metric))
    if outcome.ensemble is not None:
        out().print(_ensemble_table(outcome.ensemble, outcome.metric))
    training, share = outcome.training, outcome.parameters / outcome.base_parameters
    write(
        f"{training.steps:,} steps in {training.seconds:,.0f} s (ended by {training.stopped}), "
        f"{outcome.parameters:,} parameters trained ({share:.3%} of the base)"
        f"{_saved(outcome)}"
    )
    if outcome.path is not None:
        write(f"saved in {outcome.path} ({outcome.path.stat().st_size / 1024:,.0f} kB)")
    write(f"next: {_next(outcome)}")


def _saved(outcome: Outcome) -> str:
    """How many numbers are saved, where these are not the trained ones."""
    if outcome.path is None or outcome.saved_parameters == outcome.parameters:
        return ""
    return f", {outcome.saved_parameters:,} saved"


def _next(outcome: Outcome) -> str:
    """A command that uses what was trained."""
    from inlay.core.own_files import paths_in

    base = quote(str(outcome.base or outcome.recipe.base))
    if outcome.path is None:
        recipe = quote(str(Path(outcome.recipe.out) / RECIPE))
        return f"inlay eval {base} --recipe {recipe} --data …"
    path, kind = quote(str(outcome.path)), str(outcome.recipe.task["kind"])
    files = paths_in(f"{outcome.recipe.method or ''} {kind}")
    imports = "".join(f" --import {quote(file)}" for file in files)
    if kind == "generate":
        return f'inlay generate {base} {path} "…"{imports}'
    return f"inlay eval {base} {path} --data …{imports}"


def _score_table(title: str, columns: Mapping[str, Scores], metric: str) -> Table:
    """A line for each metric; the line of the task's own metric is bold."""
    rows = table(title or None)
    rows.add_column("")
    for name in columns:
        rows.add_column(name, justify="right")
    for name in next(iter(columns.values())):
        style = "bold" if name == metric else ""
        rows.add_row(name, *(f"{scores[name]:.4f}" for scores in columns.values()), style=style)
    return rows


def _fold_table(validated: CrossValidation) -> Table:
    """The scores of each fold, their mean and their standard deviation."""
    folds = {f"fold {number}": scores for number, scores in enumerate(validated.scores, 1)}
    columns = {**folds, "mean": validated.mean, "sd": validated.sd}
    return _score_table("Cross-validation", columns, validated.metric)


def _ensemble_table(voted: EnsembleResult, metric: str) -> Table:
    """The score of each member, their mean, and the score of their vote."""
    members = {f"member {number}": scores for number, scores in enumerate(voted.members, 1)}
    columns = {**members, "mean": voted.mean, "vote": voted.vote}
    only = {name: {metric: scores[metric]} for name, scores in columns.items()}
    return _score_table("Ensemble", only, metric)
