"""inlay demo: teach a real model to judge reviews, and show what it learned."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from inlay_cli.console import busy, err, out, table, write
from inlay_cli.shared import RECIPE, examples, open_base, open_inlay, silence

if TYPE_CHECKING:
    from rich.table import Table

    from inlay.data.dataset import Dataset
    from inlay.tasks import Task
    from inlay.training.recipes.outcome import Outcome

BASE = "smollm2"
FIELDS = {
    "base": BASE,
    "method": "LoRA(rank=8, at=Where(('attn.q', 'attn.k', 'attn.v', 'attn.o')))",
    "name": "reviews",
    "task.kind": "classify",
    "task.template": "{text} All in all, it was",
    "task.by.words": '{"negative": " bad", "positive": " great"}',
    "data.train.split": "train",
    "training.lr": "1e-3",
    "training.batch_size": "16",
}
"""The recipe, as options of `inlay train`; the rows and the end of the training are added."""

STEPS = 100
"""With so many steps at least 85 % of the reviews are classified correctly, on any processor."""

MINUTES = 3.5
"""The longest training, on a slow processor."""

TEST_ROWS = {"movie": 400, "amazon": 50, "tweets": 50}
"""How many rows of each kind of text are tested. Only movie reviews are trained on, other rows."""

TITLES = {
    "movie": "movie reviews",
    "amazon": "Amazon reviews (never trained on)",
    "tweets": "tweets (never trained on)",
}
EXAMPLES = 5
"""How many reviews are shown with their predictions."""


@dataclass
class Test:
    """The test rows of one kind of text, with the labels predicted before and after training."""

    rows: Dataset
    before: Sequence[str] = ()
    after: Sequence[str] = ()


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        rich_help_panel=panel,
        epilog=examples(
            ("inlay demo", "at least 85 % of 400 held-out reviews correct"),
            ("inlay demo --steps 30", "a shorter run, with a worse result"),
            ("inlay demo --steps 300 --minutes 15", "a longer one, with a better result"),
        ),
    )(demo)


def demo(
    folder: Annotated[
        Path, typer.Option("--out", help="The folder for the inlay.", file_okay=False)
    ] = Path("runs/demo"),
    steps: Annotated[
        int, typer.Option(min=1, help=f"Training steps of {FIELDS['training.batch_size']} reviews.")
    ] = STEPS,
    minutes: Annotated[
        float, typer.Option(min=0.05, help="The longest training; it may end before the steps.")
    ] = MINUTES,
    rows: Annotated[
        int | None,
        typer.Option(
            min=10,
            help="Test rows of each kind of text; by default 400, 50, 50.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Teach a real model to judge reviews: SmolLM2-135M, frozen, with a small LoRA.

    The demo runs `inlay train` with a small recipe, which it writes into the folder.
    """
    start = time.monotonic()
    with busy("starting"):
        from inlay.hub import fetch_sentiment
        from inlay.training import Recipe, predict
        from inlay.training.recipes.run import run
    silence()
    with busy("fetching the sentences") as show:
        sentences = fetch_sentiment(show)
    end = {"training.steps": str(steps), "training.minutes": str(minutes)}
    source = {"data.train.source": str(sentences / "movie")}
    recipe = Recipe.load(None, {**FIELDS, **end, **source, "out": str(folder)})
    task = recipe.make_task()
    tests = {
        kind: Test(_test_rows(sentences / kind, task, rows or limit))
        for kind, limit in TEST_ROWS.items()
    }

    _show_step(1, "predictions of the model as it is")
    model, tokenizer = open_base(BASE)
    task.bind(model, tokenizer)
    for kind, test in tests.items():
        test.before = predict(model, task, test.rows, console=err(), what=TITLES[kind])

    _show_step(2, f"training on movie reviews: {steps} steps, at most {minutes:g} minutes")
    outcome = run(recipe, err(), resume=False)
    assert outcome.path is not None

    _show_step(3, "predictions of the same model with the trained inlay")
    handle = open_inlay(model, tokenizer, outcome.path)
    for kind, test in tests.items():
        test.after = predict(model, task, test.rows, console=err(), what=TITLES[kind])
    out().print(_score_table(task, tests))
    out().print(_example_table(tests["movie"]))
    parameters = handle.count()
    base_parameters = sum(parameter.numel() for parameter in model.parameters()) - parameters
    _show_summary(outcome, outcome.path, parameters, base_parameters, time.monotonic() - start)


def _test_rows(folder: Path, task: Task, limit: int) -> Dataset:
    from inlay.data.loading import load

    return load(folder, split="test", need=task.required_fields, limit=limit)


def _show_step(number: int, step: str) -> None:
    err().print(f"[bold cyan]{number}/3[/]  {step}")


def _score_table(task: Task, tests: dict[str, Test]) -> Table:
    lines = table("\nCorrect answers")
    lines.add_column("held-out sentences")
    lines.add_column("rows", justify="right")
    lines.add_column("before", justify="right")
    lines.add_column("after", justify="right", style="bold green")
    for kind, test in tests.items():
        scores = [
            task.score(list(predictions), test.rows)["accuracy"]
            for predictions in (test.before, test.after)
        ]
        lines.add_row(TITLES[kind], str(len(test.rows)), *(f"{score:.1%}" for score in scores))
    return lines


def _example_table(test: Test) -> Table:
    """A few rows of readable length, with the predictions before and after."""
    from rich.markup import escape

    lines = table("Some of them")
    lines.add_column("sentence", max_width=70)
    lines.add_column("label")
    lines.add_column("before")
    lines.add_column("after")
    texts = [str(row.fields["text"]) for row in test.rows]
    readable = [number for number, text in enumerate(texts) if 30 <= len(text) <= 120]
    for number in readable[:EXAMPLES]:
        label = str(test.rows[number].fields["label"])
        predictions = [
            f"[green]{prediction}" if prediction == label else f"[red]{prediction}"
            for prediction in (test.before[number], test.after[number])
        ]
        lines.add_row(escape(texts[number]), label, *predictions)
    return lines


def _show_summary(
    outcome: Outcome, path: Path, parameters: int, base_parameters: int, seconds: float
) -> None:
    """Show what was trained and saved, and what to type next."""
    training, recipe = outcome.training, path.parent / RECIPE
    early = ", stopped by the time limit" if training.stopped == "minutes" else ""
    for line in (
        f"Saved: {path}, {path.stat().st_size / 1024:,.0f} kB, {parameters:,} parameters "
        f"({parameters / base_parameters:.3%} of the model, which did not change).",
        f"The recipe: {recipe}.",
        f"Training: {training.steps} steps in {training.seconds:,.0f} s{early}; {seconds:,.0f} s "
        "in all.",
        "",
        "Next, evaluate it yourself, or train on your own texts:",
        f"  inlay eval {quote(outcome.recipe.base)} {quote(str(path))} --split dev --limit 200",
        f"  inlay train {quote(str(recipe))} --train YOURS.csv --out runs/yours",
    ):
        write(line)
