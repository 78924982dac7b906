"""inlay plan: what a recipe will take, before it is trained."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay_cli.console import busy, err, out, table, write
from inlay_cli.flags import assignments
from inlay_cli.shared import RecipeArgument, SetOption, examples, silence

if TYPE_CHECKING:
    from inlay.training.recipes.compare_plans import MethodPlan


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        "plan",
        rich_help_panel=panel,
        epilog=examples(
            ("inlay plan recipe.yaml", "memory, time and size of what it trains"),
            (
                'inlay plan recipe.yaml --method LoRA --method "Prefix(length=20)"',
                "several methods side by side",
            ),
            ("inlay plan recipe.yaml --set training.batch_size=4", "with another field"),
        ),
    )(plan)


def plan(
    recipe: RecipeArgument,
    methods: Annotated[
        list[str],
        typer.Option(
            "--method",
            help="A method instead of the recipe's; may be given several times.",
            show_default=False,
        ),
    ] = [],  # noqa: B006  # typer's way to say: may be given several times
    settings: SetOption = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print every number as JSON.")] = False,
) -> None:
    """Say what a recipe will take: parameters, bytes on disk, memory at the peak, time an epoch.

    One step is tried on the largest batch, and nothing is learned or written. Where a run will not
    fit, it says what would. The exit code is 1 if none of the methods fits.
    """
    with busy("starting"):
        from inlay.training.recipes.compare_plans import plan_methods
        from inlay.training.recipes.recipe import Recipe
    changes = dict(assignments(settings))
    if methods:
        changes = {"method": methods[0], **changes}
    loaded = Recipe.load(recipe, changes)
    silence()
    with busy("trying a step"):
        plans = plan_methods(loaded, methods, err())
    if as_json:
        sys.stdout.write(json.dumps([_numbers(entry) for entry in plans], indent=2) + "\n")
    else:
        _show(plans)
    if all(entry.plan is None or entry.plan.fits is False for entry in plans):
        raise typer.Exit(1)


def _show(plans: list[MethodPlan]) -> None:
    """A line for each method, and below it what would fit."""
    from inlay.training.loop.memory import gigabytes
    from inlay.training.planning import duration

    rows = table()
    for name in ("parameters", "of the base", "file", "peak", "a step", "steps", "an epoch"):
        if not rows.columns:
            rows.add_column("method", overflow="fold")
        rows.add_column(name, justify="right")
    for entry in plans:
        estimate = entry.plan
        if estimate is None:
            rows.add_row(entry.method, *[""] * 7)
            continue
        fits = estimate.fits is not False and estimate.peak is not None
        rows.add_row(
            entry.method,
            f"{entry.parameters:,}",
            f"{entry.parameters / entry.base_parameters:.3%}",
            gigabytes(estimate.file),
            gigabytes(estimate.peak) if estimate.peak is not None else "does not fit",
            "" if math.isnan(estimate.per_step) else f"{estimate.per_step:.2f} s",
            f"{estimate.steps:,}",
            "" if math.isnan(estimate.per_step) else duration(estimate.epoch),
            style="" if fits else "red",
        )
    out().print(rows)
    for entry in plans:
        if entry.plan is None:
            write(f"{entry.method}: {entry.error}", err())
        elif entry.plan.fits is False:
            write(f"{entry.method} does not fit; try {'; or '.join(entry.plan.cures())}", err())


def _numbers(entry: MethodPlan) -> dict[str, Any]:
    """Every number of a plan; those that are not known are null."""
    numbers: dict[str, Any] = {"method": entry.method}
    if entry.plan is None:
        return numbers | {"error": entry.error}
    numbers |= dataclasses.asdict(entry.plan)
    numbers |= {"peak": entry.plan.peak, "epoch": entry.plan.epoch, "fits": entry.plan.fits}
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in numbers.items()
    }
