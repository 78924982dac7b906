"""inlay intrinsic-dimension: how few numbers suffice to train a task."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from inlay_cli.console import busy, err, out, table, write
from inlay_cli.flags import assignments
from inlay_cli.shared import FreshOption, RecipeArgument, SetOption, examples, silence

if TYPE_CHECKING:
    from rich.table import Table

    from inlay.training.recipes.intrinsic_dimension import IntrinsicDimension

BAR = 40
"""How many characters a full bar has."""


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        "intrinsic-dimension",
        rich_help_panel=panel,
        epilog=examples(
            ("inlay intrinsic-dimension recipe.yaml", "search 200 to 50,000 dimensions"),
            (
                "inlay intrinsic-dimension recipe.yaml --dimensions 100,300,1000",
                "these dimensions alone",
            ),
            (
                "inlay intrinsic-dimension recipe.yaml --full-score 0.91",
                "the score of the whole base is known",
            ),
            ("inlay intrinsic-dimension recipe.yaml --set training.steps=500", "set any field"),
        ),
    )(intrinsic_dimension)


def intrinsic_dimension(
    recipe: RecipeArgument,
    dimensions: Annotated[
        str, typer.Option(help="The numbers of dimensions to try, with commas between.")
    ] = "200,500,1000,2000,5000,10000,20000,50000",
    scales: Annotated[
        bool,
        typer.Option(
            help="Train a scale for every matrix too (structure-aware, SAID), or z alone (DID)."
        ),
    ] = True,
    share: Annotated[
        float, typer.Option(help="Which part of the whole base's score has to be reached.")
    ] = 0.9,
    full_score: Annotated[
        float | None,
        typer.Option(
            help="The score of the whole base, where it is known; otherwise it is trained.",
            show_default=False,
        ),
    ] = None,
    settings: SetOption = [],  # noqa: B006  # typer's way to say: may be given several times
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")
    ] = False,
    fresh: FreshOption = False,
) -> None:
    """Search for the intrinsic dimension of a task: how few numbers suffice to train it.

    The recipe is trained with the whole base, and then in random subspaces of more and more
    dimensions. Its intrinsic dimension, d90, is that of the smallest which reaches 90 % of the
    whole base's score. What is finished is not run again if the same command is given again.
    """
    sizes = _sizes(dimensions)
    with busy("starting"):
        from inlay.methods.intrinsic import Intrinsic
        from inlay.training.loop.launch import processes
        from inlay.training.recipes.intrinsic_dimension import intrinsic_dimension as search
        from inlay.training.recipes.recipe import Recipe
    changes = {"method": "Intrinsic", **dict(assignments(settings))}
    plan = Recipe.load(recipe, changes)
    silence()
    found = search(
        plan,
        sizes,
        method=Intrinsic(scales=scales),
        full=full_score,
        share=share,
        console=err(),
        resume=not fresh,
    )
    if not processes().is_main_process:
        return
    if as_json:
        points = {str(p.dimensions): p.score for p in found.points}
        result = {"metric": found.metric, "full": found.full, "share": found.share}
        result |= {"dimension": found.dimension, "scores": points}
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        return
    out().print(_curve(found))
    write(_verdict(found))
    write(f"saved in {found.path}")


def _sizes(text: str) -> list[int]:
    """The numbers of a list with commas."""
    try:
        sizes = [int(word) for word in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise typer.BadParameter(f"--dimensions takes whole numbers, such as 200,1000, not {text}")
    return sizes


def _curve(found: IntrinsicDimension) -> Table:
    """A bar for every number of dimensions, as a share of the whole base's score."""
    rows = table(f"{found.metric}, the whole base {found.full:.4f}")
    rows.add_column("dimensions", justify="right")
    rows.add_column(found.metric, justify="right")
    rows.add_column("of the whole", justify="right")
    rows.add_column("")
    for point in found.points:
        part = point.score / found.full
        style = "bold" if point.dimensions == found.dimension else ""
        bar = "█" * round(BAR * min(max(part, 0), 1))
        rows.add_row(f"{point.dimensions:,}", f"{point.score:.4f}", f"{part:.1%}", bar, style=style)
    return rows


def _verdict(found: IntrinsicDimension) -> str:
    """The intrinsic dimension in a sentence."""
    name = f"d{found.share * 100:g}"
    if found.dimension is None:
        return (
            f"{name} is above {found.points[-1].dimensions:,}: none reaches {found.target:.4f}; "
            "try more dimensions or more steps"
        )
    return f"{name} = {found.dimension:,}: the fewest dimensions that reach {found.target:.4f}"
