"""inlay pet: a model for each way of asking, and one classifier that learns from them all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inlay_cli.console import busy, err, out
from inlay_cli.flags import pairs
from inlay_cli.shared import FreshOption, PrintOption, SetOption, examples, silence, table

if TYPE_CHECKING:
    from rich.table import Table

    from inlay.training.pet.results import Petted


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "pet",
        help="Teach a classifier from few labels: by patterns, and texts without labels (PET).",
        epilog=examples(
            ("inlay pet recipe.yaml", "do what a file says"),
            ("inlay pet recipe.yaml --set generations=3", "iPET: patterns teach one another"),
            ("inlay pet recipe.yaml --set data.train.shots=5", "any field at all"),
            ("inlay pet recipe.yaml --print-recipe", "see every field, with its default"),
        ),
    )(pet)


def pet(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML file.", show_default=False)
    ],
    settings: SetOption = [],  # noqa: B006  # typer's way to say: may be given several times
    print_recipe: PrintOption = False,
    fresh: FreshOption = False,
) -> None:
    """Teach a classifier from few labels: by patterns, and texts without labels (PET)."""
    with busy("starting"):
        from inlay.training.pet.pet import pet as teach
        from inlay.training.pet.recipe import Pet
    made = Pet.load(recipe, dict(pairs(settings)))
    if print_recipe:
        sys.stdout.write(made.dump())
        return
    silence()
    _told(teach(made, err(), resume=not fresh))


def _told(found: Petted) -> None:
    """What came out, and what to type next."""
    console = out()
    if found.test is not None:
        console.print(_scores(found))
    went = found.training
    console.print(f"the classifier: {went.steps:,} steps in {went.seconds:,.0f} s", soft_wrap=True)
    for path in (found.path, found.base):
        if path is not None:
            console.print(f"saved in {path}", markup=False, soft_wrap=True)
    if found.path is not None:
        base = found.base or found.recipe.base
        line = f"next: inlay eval {base} {found.path} --data …"
        console.print(line, markup=False, soft_wrap=True)


def _scores(found: Petted) -> Table:
    """Every pattern before and after training, what they say together, and the classifier."""
    from rich.text import Text

    metric, trained = found.metric, found.generations[-1]
    shown = table(f"{metric} on test")
    shown.add_column("")
    shown.add_column("untouched", justify="right")
    shown.add_column("trained", justify="right")
    for number, one in enumerate(found.untouched, 1):
        own = [m.test[metric] for m in trained.members if m.pattern == number and m.test]
        before = "" if one.test is None else f"{one.test[metric]:.4f}"
        shown.add_row(
            Text(repr(one.pattern)[1:-1]), before, " ".join(f"{score:.4f}" for score in own)
        )
    spread = found.spread
    for name, about in {"mean": "mean", "sd": "standard deviation"}.items():
        shown.add_row(about, *(f"{spread[when][name]:.4f}" for when in ("untouched", "trained")))
    for number, generation in enumerate(found.generations, 1):
        assert generation.ensemble is not None
        of = "" if len(found.generations) == 1 else f", generation {number}"
        shown.add_row(f"together{of}", "", f"{generation.ensemble[metric]:.4f}")
    assert found.test is not None
    shown.add_row("classifier", "", f"{found.test[metric]:.4f}", style="bold")
    return shown
