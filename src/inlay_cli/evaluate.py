"""inlay eval: score a base, with or without an inlay, on rows that have answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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

    from inlay.data.dataset import Example, Skipped
    from inlay.handle import Inlay
    from inlay.tasks import Prediction, Task
    from inlay.training.recipes.recipe import Source

MOST_LABELS = 10
"""With more labels the confusion is not shown as a table; JSON always has it."""

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
        from inlay.data.dataset import describe_skipped, no_rows
        from inlay.training.loop.evaluation import PredictionCollector, predict_each

    if skip_bad_rows:
        fields["data.skip_bad"] = "true"
    task, source = _task_and_rows(base, fields, file, recipe)
    rows = source.stream(task)
    model, tokenizer = open_base(base, dtype, device)
    if file is not None:
        with busy(f"reading {file}"):
            _adopt_labels(task, open_inlay(model, tokenizer, file))
    task.bind(model, tokenizer)
    answers = PredictionCollector(task)
    bad: list[Skipped] = []
    pairs = answers.collect(
        predict_each(
            model,
            task,
            rows,
            batch_size=batch_size,
            console=err(),
            what=rows.source,
            bad=bad if source.skip_bad else None,
        )
    )
    if predictions is None:
        for _ in pairs:
            pass
    else:
        _write_predictions(predictions, pairs)
    count = len(answers.predictions)
    if not count:
        raise no_rows(rows.source, (*rows.skipped, *bad))
    scores, confusion = answers.score(), answers.confusion()
    if as_json:
        result = {"rows": count, **scores, **({"confusion": confusion} if confusion else {})}
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        subject = "the base alone" if file is None else file.stem
        out().print(_score_table(scores, task.metric, count, subject))
        if 0 < len(confusion) <= MOST_LABELS:
            out().print(_confusion_table(confusion))
    for line in describe_skipped((*rows.skipped, *bad), rows.source):
        write(line, err())


def _task_and_rows(
    base: str, fields: Mapping[str, str], file: Path | None, recipe: Path | None
) -> tuple[Task, Source]:
    """The task and the source of the rows, of the recipe if there is one, changed by the fields.

    Raises RecipeError, TaskError, DataError.
    """
    from inlay.errors import RecipeError
    from inlay.training.recipes.recipe import Recipe

    if recipe is None and file is not None and (file.parent / RECIPE).is_file():
        recipe = file.parent / RECIPE
    changes = {**NO_TRAINING, "base": base}
    if recipe is not None:
        trained = Recipe.load(recipe)
        changes["task"] = json.dumps(trained.task)
        # An inlay of a fold has learned from most of `train`, so these rows are not new to it.
        parts = trained.data.parts()
        train = None if trained.folds else parts["train"]
        rows = parts.get("test") or parts.get("dev") or train
        if rows is not None:
            changes["data.test"] = rows.model_dump_json()
    for name, text in fields.items():
        is_data = name.startswith("data.")
        changes[f"data.test.{name.removeprefix('data.')}" if is_data else name] = text
    if not {"task", "task.kind"} & changes.keys():
        raise RecipeError(
            "the task is not known; give --recipe, or --task with its fields, as in --task generate"
        )
    if not {"data.test", "data.test.source"} & changes.keys():
        raise RecipeError("there are no rows to evaluate on; give --data")
    plan = Recipe.load(None, changes)
    assert plan.data.test is not None
    return plan.make_task(), plan.data.test


def _adopt_labels(task: Task, handle: Inlay) -> None:
    """Give the task the labels of the inlay's trained head, if it has one."""
    from inlay.heads import head_of

    head = head_of(handle.model, handle.name)
    if head is not None:
        task.set_labels(tuple(head.labels))


def _write_predictions(path: Path, pairs: Iterable[tuple[Example, Prediction]]) -> None:
    """Write each row with its prediction as soon as it is predicted."""
    from inlay.files.atomic import write_whole

    lines = (
        json.dumps({**row.fields, "where": row.where, "prediction": prediction})
        for row, prediction in pairs
    )
    write_whole(path, (f"{line}\n".encode() for line in lines))


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
