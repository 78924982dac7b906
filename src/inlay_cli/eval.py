"""inlay eval: measure a base, with or without an inlay, on rows that have answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay_cli.console import busy, err, out
from inlay_cli.flags import flags, with_flags
from inlay_cli.shared import (
    AnyFileArgument,
    BaseArgument,
    DeviceOption,
    DtypeOption,
    SkipOption,
    examples,
    open_base,
    open_inlay,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sized

    from inlay.data.dataset import Dataset, Example, Stream
    from inlay.handle import Inlay
    from inlay.tasks import Prediction, Task

RECIPE = "recipe.yaml"

SHOWN = 10
"""The most labels whose confusion is shown as a table; JSON has that of any number."""

NO_TRAINING = {"method": "LoRA", "out": ".", "data.train.source": "."}
"""What a recipe must say and measuring does not read."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "eval",
        help="Measure a base, with or without an inlay.",
        epilog=examples(
            ("inlay eval smollm2 runs/e2e/default.safetensors", "on the rows its recipe names"),
            ("inlay eval smollm2 runs/e2e/default.safetensors --data new.csv --json", "on others"),
            ("inlay eval smollm2 --data new.csv --task generate", "the base alone"),
        ),
    )(with_flags(evaluate, flags("eval")))


def evaluate(
    given: dict[str, str],
    base: BaseArgument,
    file: AnyFileArgument = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Where the task is described. By default the recipe.yaml beside FILE, which "
            "training has put there.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
    predictions: Annotated[
        Path | None, typer.Option(help="Write every row's prediction here, one JSON a line.")
    ] = None,
    skip_bad_rows: SkipOption = False,
    dtype: DtypeOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure a base, with or without an inlay, on rows that have answers."""
    with busy("starting"):
        from inlay.data.dataset import describe_skipped
        from inlay.training.loop.evaluation import Answers, predict_each

    if skip_bad_rows:
        given["data.skip_bad"] = "true"
    task, rows = _asked(base, given, file, recipe)
    model, tokenizer = open_base(base, dtype, device)
    if file is not None:
        with busy(f"reading {file}"):
            _same_labels(task, open_inlay(model, tokenizer, file))
    task.bind(model, tokenizer)
    shown: dict[str, Any] = {"console": err(), "what": rows.source}
    answers = Answers(task)
    pairs = answers.taking(predict_each(model, task, rows, batch_size=batch_size, **shown))
    if predictions is None:
        for _ in pairs:
            pass
    else:
        _write(predictions, pairs)
    scores, confusion = answers.score(), answers.confusion()
    if as_json:
        told = {"rows": len(rows), **scores, **({"confusion": confusion} if confusion else {})}
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        _show(scores, task.metric, rows, file)
        if 0 < len(confusion) <= SHOWN:
            _show_confusion(confusion)
    for line in describe_skipped(rows.skipped, rows.source):
        err().print(line, markup=False, soft_wrap=True)


def _asked(
    base: str, given: dict[str, str], file: Path | None, recipe: Path | None
) -> tuple[Task, Dataset | Stream]:
    """The task and the rows: those of the recipe, if there is one, with what was given on top.

    Raises RecipeError, TaskError, DataError.
    """
    from inlay.errors import RecipeError
    from inlay.training.recipes.recipe import Recipe

    if recipe is None and file is not None and (file.parent / RECIPE).is_file():
        recipe = file.parent / RECIPE
    asked = {**NO_TRAINING, "base": base}
    if recipe is not None:
        old = Recipe.load(recipe)
        asked["task"] = json.dumps(old.task)
        # Most of a fold's `train` it has learned from, so that is not taken for new rows.
        rows = old.data.test or old.data.dev or (None if old.folds else old.data.train)
        if rows is not None:
            asked["data.test"] = rows.model_dump_json()
    asked |= {
        f"data.test.{name.removeprefix('data.')}" if name.startswith("data.") else name: text
        for name, text in given.items()
    }
    if not {"task", "task.kind"} & asked.keys():
        raise RecipeError(
            "the task is not known; give --recipe, or --task and what belongs to it, "
            "as in --task generate"
        )
    if not {"data.test", "data.test.source"} & asked.keys():
        raise RecipeError("there are no rows to measure on; give --data")
    made = Recipe.load(None, asked)
    assert made.data.test is not None
    task = made.make_task()
    return task, made.data.test.stream(task)


def _same_labels(task: Task, handle: Inlay) -> None:
    """A trained head brings its labels along."""
    from inlay.heads import head_of

    head = head_of(handle.model, handle.name)
    if head is not None:
        task.adopt(tuple(head.labels))


def _write(path: Path, pairs: Iterable[tuple[Example, Prediction]]) -> None:
    """Write the predictions while they are made."""
    from inlay.files.atomic import write_whole

    lines = (json.dumps({**row.fields, "where": row.where, "said": one}) for row, one in pairs)
    write_whole(path, (f"{line}\n".encode() for line in lines))


def _show(scores: dict[str, float], metric: str, rows: Sized, file: Path | None) -> None:
    shown = table()
    shown.add_column(f"{len(rows)} rows")
    shown.add_column("the base alone" if file is None else file.stem, justify="right")
    for name, value in scores.items():
        shown.add_row(name, f"{value:.4f}", style="bold" if name == metric else "")
    out().print(shown)


def _show_confusion(confusion: dict[str, dict[str, int]]) -> None:
    """How often each label (a row) was taken for each label (a column)."""
    from rich.text import Text

    shown = table("Rows by label, and by what was predicted")
    shown.add_column("label")
    for name in confusion:
        shown.add_column(Text(name), justify="right")
    for name, counts in confusion.items():
        shown.add_row(Text(name), *map(str, counts.values()))
    out().print(shown)
