"""inlay fuse: train adapters where they are not there yet, then a fusion that listens to them."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from inlay_cli.console import busy, err, out, table, write
from inlay_cli.flags import assignments
from inlay_cli.shared import (
    FreshOption,
    PrintOption,
    RecipeArgument,
    SetOption,
    SkipOption,
    examples,
    silence,
)

if TYPE_CHECKING:
    from rich.table import Table

    from inlay.training.fusion.recipe import FuseRecipe
    from inlay.training.fusion.results import FuseResult, Scores


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        "fuse",
        rich_help_panel=panel,
        epilog=examples(
            ("inlay fuse recipe.yaml", "both stages; again, where it was stopped: it goes on"),
            ("inlay fuse recipe.yaml --prune 2", "and a second file with the two most used"),
            (
                "inlay fuse recipe.yaml --set adapters.topics=topics.safetensors",
                "start from the file of a trained adapter",
            ),
            (
                "inlay fuse recipe.yaml --set adapters.topics.training.steps=500",
                "set any field of either stage",
            ),
            ("inlay inspect runs/fused/default.safetensors", "what each layer listens to"),
        ),
    )(fuse)


def fuse(
    recipe: RecipeArgument,
    target: Annotated[
        str | None,
        typer.Option(
            "--out", metavar="FOLDER", help="The folder to write into.", show_default=False
        ),
    ] = None,
    prune: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="Write a second file, with the K adapters that are used most.",
            show_default=False,
        ),
    ] = None,
    prune_per: Annotated[
        Literal["inlay", "layer"] | None,
        typer.Option(
            help="Keep the same K adapters everywhere, or of each layer its own.",
            show_default=False,
        ),
    ] = None,
    settings: SetOption = [],  # noqa: B006  # typer's way to say: may be given several times
    print_recipe: PrintOption = False,
    skip_bad_rows: SkipOption = False,
    fresh: FreshOption = False,
) -> None:
    """Learn a task from adapters of other tasks, by attention over them (AdapterFusion).

    The recipe names each adapter, by its file or by how to train it, and the target task. First
    the adapters are trained that have no file; then they are frozen, and the fusion learns, in
    every layer and at every position, which of them to listen to. Its file needs no other.
    """
    with busy("starting"):
        from inlay.training.fusion.run import train_fusion
        from inlay.training.loop.launch import processes
    options = {"out": target, "prune": prune, "prune_per": prune_per}
    changes = {name: str(value) for name, value in options.items() if value is not None}
    plan = _load(recipe, {**changes, **dict(assignments(settings))}, skip_bad_rows)
    if print_recipe:
        sys.stdout.write(plan.dump())
        return
    silence()
    result = train_fusion(plan, err(), resume=not fresh)
    if processes().is_main_process:  # one report, however many processes train
        _show(result)


def _load(path: Path, changes: dict[str, str], skip_bad_rows: bool) -> FuseRecipe:
    from inlay.training.fusion.recipe import FuseRecipe

    recipe = FuseRecipe.load(path, changes)
    if not skip_bad_rows:
        return recipe
    sources = [f"data.{part}" for part in recipe.data.parts()]
    for name, adapter in recipe.trained().items():
        assert adapter.data is not None
        sources += [f"adapters.{name}.data.{part}" for part in adapter.data.parts()]
    return FuseRecipe.load(path, changes | {f"{source}.skip_bad": "true" for source in sources})


def _show(result: FuseResult) -> None:
    """Show the adapters, the scores, what is saved where, and what to type next."""
    out().print(_adapter_table(result))
    outcome, pruned = result.fusion, result.pruned
    rows = {"untrained": (outcome.untouched, None), "fusion": (outcome.dev, outcome.test)}
    if pruned is not None:
        rows[f"pruned to {result.recipe.prune}"] = (pruned.dev, pruned.test)
    if any(scores for pair in rows.values() for scores in pair):
        out().print(_score_table(outcome.metric, rows))
    training = outcome.training
    write(
        f"the fusion: {training.steps:,} steps in {training.seconds:,.0f} s (ended by "
        f"{training.stopped}), {outcome.parameters:,} parameters trained"
    )
    for path in (outcome.path, None if pruned is None else pruned.path):
        if path is not None:
            write(f"saved in {path} ({path.stat().st_size / 1024:,.0f} kB)")
    file = quote(str(outcome.path))
    write(f"next: inlay inspect {file} shows what it listens to; inlay eval {file} --data …")


def _adapter_table(result: FuseResult) -> Table:
    """Each adapter, its own scores, and how much the fusion listens to it."""
    from rich.text import Text

    rows = table(f"Adapters, and how much the fusion listens to them on {result.measured}")
    rows.add_column("adapter", style="bold cyan")
    rows.add_column("file")
    for name in ("own task", "dev", "test", "listens"):
        rows.add_column(name, justify="right")
    for adapter in result.adapters:
        scores = adapter.scores
        cells = ["", "", ""]
        if scores is not None:
            parts = (_of_metric(part, scores.metric) for part in (scores.dev, scores.test))
            cells = [scores.metric, *parts]
        share = f"{100 * result.means[adapter.name]:.1f}%"
        rows.add_row(adapter.name, Text(str(adapter.path)), *cells, share)
    return rows


def _score_table(metric: str, lines: dict[str, tuple[Scores, Scores]]) -> Table:
    """The scores of the fusion by the metric of its task."""
    rows = table(metric)
    rows.add_column("")
    for name in ("dev", "test"):
        rows.add_column(name, justify="right")
    for name, (dev, test) in lines.items():
        rows.add_row(name, _of_metric(dev, metric), _of_metric(test, metric))
    return rows


def _of_metric(scores: Scores, metric: str) -> str:
    return "" if scores is None else f"{scores[metric]:.4f}"
