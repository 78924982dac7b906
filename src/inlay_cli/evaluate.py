"""inlay eval: score a base, with or without an inlay, on rows that have answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay_cli import names
from inlay_cli.console import busy, err, out, table, write
from inlay_cli.flags import flags, with_flags
from inlay_cli.shared import (
    RECIPE,
    BaseArgument,
    DeviceOption,
    DtypeOption,
    OptionalFileArgument,
    SkipOption,
    examples,
    open_base,
    open_inlay,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from inlay.data.dataset import Example
    from inlay.handle import Inlay
    from inlay.tasks import Prediction, Task
    from inlay.training.recipes.recipe import Recipe

MOST_LABELS = 10
"""With more labels the confusion is not shown as a table; JSON always has it."""

CHOICES = {"split", "limit", "shots", "seed"}
"""The fields of a source that choose some of its rows."""

NO_TRAINING = {"method": "LoRA", "out": ".", "data.train.source": "."}
"""Fields that a recipe must have and that evaluation does not read."""


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        "eval",
        rich_help_panel=panel,
        epilog=examples(
            ("inlay eval smollm2 runs/e2e/default.safetensors", "on the rows of its recipe"),
            (
                "inlay eval smollm2 runs/e2e/default.safetensors --data new.csv --json",
                "on other rows",
            ),
            ("inlay eval smollm2 --data new.csv --task generate", "the base alone"),
        ),
    )(with_flags(evaluate, flags("eval")))


def evaluate(
    fields: dict[str, str],
    base: BaseArgument,
    file: OptionalFileArgument = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="The recipe that describes the task. By default the recipe.yaml next to FILE, "
            "where training writes it.",
            autocompletion=names.recipes,
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a batch.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Write a JSON line for each row here, with its prediction.",
            show_default=False,
        ),
    ] = None,
    skip_bad_rows: SkipOption = False,
    dtype: DtypeOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Score a base, with or without an inlay, on rows that have answers.

    Task and rows come from the recipe; what is given as an option wins over it.
    """
    with busy("starting"):
        from inlay.data.dataset import describe_skipped
        from inlay.training.loop.evaluation import PredictionCollector, predict_each

    if skip_bad_rows:
        fields["data.skip_bad"] = "true"
    plan = _plan(base, fields, file, recipe)
    assert plan.data.test is not None
    task = plan.make_task()
    rows = plan.data.test.stream(task)
    model, tokenizer = open_base(base, dtype, device)
    if file is not None:
        with busy(f"reading {file}"):
            _adopt_labels(task, open_inlay(model, tokenizer, file))
    task.bind(model, tokenizer)
    answers = PredictionCollector(task)
    pairs = answers.collect(
        predict_each(model, task, rows, batch_size=batch_size, console=err(), what=rows.source)
    )
    if predictions is None:
        for _ in pairs:
            pass
    else:
        _write_predictions(predictions, pairs, plan.data.test.columns or {})
    scores, confusion = answers.score(), answers.confusion()
    if as_json:
        result = {"rows": len(rows), **scores, **({"confusion": confusion} if confusion else {})}
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        subject = "the base alone" if file is None else file.stem
        out().print(_score_table(scores, task.metric, len(rows), subject))
        if 0 < len(confusion) <= MOST_LABELS:
            out().print(_confusion_table(confusion))
    for line in describe_skipped(rows.skipped, rows.source):
        write(line, err())


def _plan(base: str, fields: Mapping[str, str], file: Path | None, recipe: Path | None) -> Recipe:
    """The recipe, if there is one, changed by the fields: its task, and as `test` the rows.

    What chose the rows of the recipe's own file (split, limit, shots) says nothing of another
    file; how its columns are named and written holds for both.

    Raises RecipeError, TaskError.
    """
    from inlay.errors import RecipeError
    from inlay.training.recipes.recipe import Recipe

    named = recipe is not None
    if recipe is None and file is not None and (file.parent / RECIPE).is_file():
        recipe = file.parent / RECIPE
    changes = {**NO_TRAINING, "base": base}
    if recipe is not None:
        trained = Recipe.load(recipe, run_files=named)
        changes["task"] = json.dumps(trained.task)
        # An inlay of a fold has learned from most of `train`, so these rows are not new to it.
        train = None if trained.folds else trained.data.train
        rows = trained.data.test or trained.data.dev or train
        if rows is not None:
            dropped = CHOICES if "data.source" in fields else set()
            changes["data.test"] = rows.model_dump_json(exclude=dropped)
    for name, text in fields.items():
        is_data = name.startswith("data.")
        changes[f"data.test.{name.removeprefix('data.')}" if is_data else name] = text
    if not {"task", "task.kind"} & changes.keys():
        raise RecipeError(
            "the task is not known; give --recipe, or --task with its fields, as in --task generate"
        )
    if not {"data.test", "data.test.source"} & changes.keys():
        raise RecipeError("there are no rows to evaluate on; give --data")
    return Recipe.load(None, changes)


def _adopt_labels(task: Task, handle: Inlay) -> None:
    """Give the task the labels of the inlay's trained head, if it has one."""
    from inlay.heads import head_of

    head = head_of(handle.model, handle.name)
    if head is not None:
        task.set_labels(tuple(head.labels))


def _write_predictions(
    path: Path, pairs: Iterable[tuple[Example, Prediction]], columns: Mapping[str, str]
) -> None:
    """Write each row with its prediction as soon as it is predicted.

    columns: the field -> the column of the file that it is read from. Only the column is written.
    """
    from inlay.files.atomic import write_whole

    lines = (
        json.dumps({**_columns_of(row, columns), "where": row.where, "prediction": prediction})
        for row, prediction in pairs
    )
    write_whole(path, (f"{line}\n".encode() for line in lines))


def _columns_of(row: Example, columns: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a row, without those that repeat a column under the name of the field."""
    repeated = {
        name
        for name, column in columns.items()
        if name != column and row.fields[name] == row.fields[column]
    }
    return {name: value for name, value in row.fields.items() if name not in repeated}


def _score_table(scores: Mapping[str, float], metric: str, rows: int, subject: str) -> Table:
    lines = table()
    lines.add_column(f"{rows} rows")
    lines.add_column(subject, justify="right")
    for name, value in scores.items():
        lines.add_row(name, f"{value:.4f}", style="bold" if name == metric else "")
    return lines


def _confusion_table(confusion: Mapping[str, Mapping[str, int]]) -> Table:
    """A line for each true label, a column for each predicted one."""
    from rich.text import Text

    lines = table("Rows by label, and by predicted label")
    lines.add_column("label")
    for name in confusion:
        lines.add_column(Text(name), justify="right")
    for name, counts in confusion.items():
        lines.add_row(Text(name), *map(str, counts.values()))
    return lines
