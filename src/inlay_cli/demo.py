"""inlay demo: a real model learns to judge reviews, before your eyes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inlay_cli.console import busy, err, out
from inlay_cli.shared import examples, open_base, open_inlay, silence, table

if TYPE_CHECKING:
    from inlay.data.dataset import Dataset
    from inlay.tasks import Task
    from inlay.training.recipes.run import Outcome

BASE = "smollm2"
RECIPE = {
    "base": BASE,
    "method": "LoRA(rank=4)",
    "name": "reviews",
    "task.kind": "classify",
    "task.template": "{text} All in all, it was",
    "task.verbalizer": '{"negative": " bad", "positive": " great"}',
    "data.train.split": "train",
    "training.lr": "1e-3",
    "training.batch_size": "16",
}
"""The run, as flags of `inlay train`; the rows and its end come on top."""

STEPS = 100
"""What it takes to be right about 85 % of the reviews and more, on any processor."""

MINUTES = 3.5
"""No more than that, however slow the processor is."""

HELD_OUT = {"movie": 300, "amazon": 50, "tweets": 50}
"""Rows to measure on, none of which is trained on; of the last two kinds nothing is."""

TITLES = {
    "movie": "movie reviews",
    "amazon": "Amazon reviews (never trained on)",
    "tweets": "tweets (never trained on)",
}
SHOWN = 5


@dataclass
class Seen:
    """What was measured on one kind of text."""

    rows: Dataset
    before: Sequence[str] = ()
    after: Sequence[str] = ()

    def score(self, task: Task, said: Sequence[str]) -> float:
        """The accuracy of some answers."""
        return task.score(list(said), self.rows)["accuracy"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog=examples(
            ("inlay demo", "right about at least 85 of 100 held-out reviews"),
            ("inlay demo --steps 30", "a shorter look, and a worse result"),
            ("inlay demo --steps 300 --minutes 15", "a longer one, and a better result"),
        )
    )(demo)


def demo(
    folder: Annotated[
        Path, typer.Option("--out", help="Where the inlay is saved.", file_okay=False)
    ] = Path("runs/demo"),
    steps: Annotated[
        int, typer.Option(min=1, help=f"How many batches of {RECIPE['training.batch_size']}.")
    ] = STEPS,
    minutes: Annotated[float, typer.Option(min=0.05, help="How long to train at most.")] = MINUTES,
    rows: Annotated[
        int | None, typer.Option(min=10, help="Measure on so many rows of each kind.")
    ] = None,
) -> None:
    """Teach a real model to judge reviews: SmolLM2-135M, frozen, and a small LoRA.

    It is what `inlay train` does with a small recipe, which is left in the folder.
    """
    begun = time.monotonic()
    with busy("starting"):
        from inlay.hub.models import fetch_sentiment
        from inlay.training import Recipe, predict
        from inlay.training.recipes.run import run
    silence()
    with busy("looking for the sentences") as say:
        sentences = fetch_sentiment(say)
    ends = {"training.steps": f"{steps}", "training.minutes": f"{minutes}"}
    flags = {**RECIPE, **ends, "data.train.source": str(sentences / "movie"), "out": str(folder)}
    recipe = Recipe.load(None, flags)
    task = recipe.make_task()
    seen = {
        kind: Seen(_held_out(sentences / kind, task, rows or n)) for kind, n in HELD_OUT.items()
    }

    _step(1, "the model as it is, asked whether it was good or bad")
    model, tokenizer = open_base(BASE)
    task.bind(model, tokenizer)
    for kind, one in seen.items():
        one.before = predict(model, task, one.rows, console=err(), what=TITLES[kind])

    until = f"{steps} steps of training, or {minutes:g} minutes of it if those come first"
    _step(2, f"{until}, on movie reviews only")
    outcome = run(recipe, err(), resume=False)
    assert outcome.path is not None

    _step(3, "the same model, with what was saved")
    handle = open_inlay(model, tokenizer, outcome.path)
    for kind, one in seen.items():
        one.after = predict(model, task, one.rows, console=err(), what=TITLES[kind])
    size = sum(p.numel() for p in model.parameters()) - handle.count()
    _report(task, seen)
    _last_words(outcome, outcome.path, handle.count(), size, time.monotonic() - begun)


def _held_out(folder: Path, task: Task, limit: int) -> Dataset:
    from inlay.data.loading import load

    return load(folder, split="test", need=task.needs, limit=limit)


def _step(number: int, what: str) -> None:
    err().print(f"[bold cyan]{number}/3[/]  {what}")


def _report(task: Task, seen: dict[str, Seen]) -> None:
    from rich.markup import escape

    console = out()
    shown = table("\nRight answers")
    shown.add_column("held-out sentences")
    shown.add_column("rows", justify="right")
    shown.add_column("before", justify="right")
    shown.add_column("after", justify="right", style="bold green")
    for kind, one in seen.items():
        before, after = one.score(task, one.before), one.score(task, one.after)
        shown.add_row(TITLES[kind], str(len(one.rows)), f"{before:.1%}", f"{after:.1%}")
    console.print(shown)

    movie = seen["movie"]
    shown = table("Five of them")
    shown.add_column("sentence", max_width=70)
    shown.add_column("it is")
    shown.add_column("before")
    shown.add_column("after")
    for number in _telling(movie):
        gold = str(movie.rows[number].fields["label"])
        said = (movie.before[number], movie.after[number])
        marked = [f"[green]{word}" if word == gold else f"[red]{word}" for word in said]
        shown.add_row(escape(str(movie.rows[number].fields["text"])), gold, *marked)
    console.print(shown)


def _telling(one: Seen) -> list[int]:
    """The first five rows of readable length."""
    short = [i for i, row in enumerate(one.rows) if 30 <= len(str(row.fields["text"])) <= 120]
    return short[:SHOWN]


def _last_words(outcome: Outcome, path: Path, count: int, size: int, seconds: float) -> None:
    console = out()
    kilobytes = path.stat().st_size / 1024
    trained = outcome.training
    early = ", when the time was up" if trained.stopped == "minutes" else ""
    facts = (
        f"Saved: {path}, {kilobytes:,.0f} kB, {count:,} numbers "
        f"({count / size:.3%} of the model, which did not change).",
        f"The recipe is beside it, {path.parent / 'recipe.yaml'}.",
        f"It learned {trained.steps} steps in {trained.seconds:,.0f} s{early}; "
        f"all in all it took {seconds:,.0f} s.",
        "",
        "Next, measure it yourself, or teach it your own texts:",
        f"  inlay eval {outcome.recipe.base} {path} --split dev --limit 200",
        f"  inlay train {path.parent / 'recipe.yaml'} --train YOURS.csv --out runs/yours",
    )
    for line in facts:
        console.print(line, markup=False, soft_wrap=True)
