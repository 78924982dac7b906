"""Scoring a base, with or without an inlay, on rows that have answers: what `inlay eval` does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay_cli.console import err
from inlay_cli.shared import RECIPE, Opened

if TYPE_CHECKING:
    from inlay.data.dataset import Dataset, Example, Skipped, Stream
    from inlay.data.fields import Columns
    from inlay.errors import DataError
    from inlay.files.usage import Usage
    from inlay.handle import Inlay
    from inlay.tasks import Prediction, Task
    from inlay.training.loop.mistakes import WrongRow
    from inlay.training.recipes.recipe import Recipe

CHOICES = {"split", "limit", "shots", "seed"}
"""The fields of a source that choose some of its rows."""

NO_TRAINING = {"method": "LoRA", "out": ".", "data.train.source": "."}
"""Fields that a recipe must have and that evaluation does not read."""


@dataclass(frozen=True)
class Scored:
    """The scores of one file, or of the base alone.

    name: what it is called. rows: how many there were. source: where they come from. metric: the
    task's own. confusion: see `Task.confusion`. wrong: the worst mistakes, and `mistakes`, how many
    there were. skipped: the rows that were left out.
    """

    name: str
    rows: int
    source: str
    metric: str
    scores: Mapping[str, float]
    confusion: Mapping[str, Mapping[str, int]]
    mistakes: int
    wrong: list[WrongRow]
    skipped: tuple[Skipped, ...]

    def to_json(self, with_errors: bool) -> dict[str, Any]:
        """The scores as JSON."""
        confusion = {"confusion": self.confusion} if self.confusion else {}
        errors = {"errors": [row.to_json() for row in self.wrong]} if with_errors else {}
        return {"rows": self.rows, **self.scores, **confusion, **errors}


def score(
    name: str,
    plan: Recipe,
    opened: Opened,
    *,
    batch_size: int,
    errors: int,
    predictions: Path | None,
) -> Scored:
    """Score an opened inlay, or the base alone, on the rows of a plan.

    errors: how many of the worst mistakes are kept. predictions: a file for all predictions.
    """
    from inlay.data.dataset import no_rows
    from inlay.training.loop.evaluation import PredictionCollector, predict_each, record_each
    from inlay.training.loop.launch import processes
    from inlay.training.loop.mistakes import WorstMistakes

    source = plan.data.test
    assert source is not None
    task = plan.make_task()
    rows = source.without_bad().stream(task)
    if opened.handle is not None:
        _adopt_labels(task, opened.handle)
    task.bind(opened.model, opened.tokenizer)
    if rows.skipped and not source.skip_bad:
        raise _bad_rows(task, rows)
    answers, worst = PredictionCollector(task), WorstMistakes(task, errors)
    bad: list[Skipped] = []
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "console": err() if processes().is_main_process else None,
        "what": rows.source,
        "bad": bad if source.skip_bad else None,
    }
    if errors:
        temperature = 1.0 if opened.usage is None else opened.usage.temperature
        records = record_each(opened.model, task, rows, temperature=temperature, **options)
        watched = worst.watch(records)
        each: Iterator[Any] = ((row, record["prediction"]) for row, record in watched)
    else:
        each = predict_each(opened.model, task, rows, **options)
    pairs = answers.collect(each)
    if predictions is None or not processes().is_main_process:
        for _ in pairs:
            pass
    else:
        _write_predictions(predictions, pairs, source.columns or {})
    count, skipped = len(answers.predictions), (*rows.skipped, *bad)
    if not count:
        raise no_rows(rows.source, skipped)
    return Scored(
        name, count, rows.source, task.metric, answers.score(), answers.confusion(),
        worst.wrong, worst.rows(), skipped,
    )  # fmt: skip


def _bad_rows(task: Task, rows: Dataset | Stream) -> DataError:
    """The error about the rows that cannot be read and those that the task cannot encode."""
    from inlay.data.dataset import bad_rows
    from inlay.tasks.usable import encode_usable
    from inlay.training.loop.evaluation import chunks

    encoding = [bad for chunk in chunks(rows) for bad in encode_usable(task.encode_some, chunk).bad]
    return bad_rows(rows.skipped, encoding=encoding)


def make_plan(
    base: str,
    fields: Mapping[str, str],
    file: Path | None,
    recipe: Path | None,
    usage: Usage | None = None,
) -> Recipe:
    """The task and, as `test`, the rows to evaluate on.

    They are those of the recipe, or of what the file says of its task, changed by the fields.

    What chose the rows of the recipe's own file (split, limit, shots) says nothing of another
    file; how its columns are named and written holds for both.

    Raises RecipeError, TaskError.
    """
    from inlay.errors import RecipeError
    from inlay.predicting import task_of
    from inlay.training.recipes.recipe import Recipe

    named = recipe is not None
    if recipe is None and file is not None and (file.parent / RECIPE).is_file():
        recipe = file.parent / RECIPE
    changes = {**NO_TRAINING, "base": base}
    if usage is not None and not named:
        if "task.kind" not in fields:
            task_of(usage)  # a file that names a program as its task is refused here
        task = {name: value for name, value in usage.task.items() if name != "task"}
        changes["task"] = json.dumps({"kind": usage.task["task"], **task})
    if usage is not None and recipe is None and "data.source" in fields:
        written = {
            "columns": usage.columns or None,
            "template": usage.templates or None,
            "separator": usage.separator,
        }
        changes["data.test"] = json.dumps({"source": fields["data.source"], **written})
    if recipe is not None:
        trained = Recipe.load(recipe, run_files=named)
        changes.setdefault("task", json.dumps(trained.task))
        # An inlay of a fold has learned from most of `train`, so these rows are not new to it.
        parts = trained.data.parts()
        train = None if trained.folds else parts["train"]
        rows = parts.get("test") or parts.get("dev") or train
        if rows is not None:
            dropped = CHOICES if fields.get("data.source", rows.source) != rows.source else set()
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
    from inlay.runtime.trained_heads import head_of

    head = head_of(handle.model, handle.name)
    if head is not None:
        task.set_labels(tuple(head.labels))


def _write_predictions(
    path: Path, pairs: Iterable[tuple[Example, Prediction]], columns: Columns
) -> None:
    """Write each row with its prediction as soon as it is predicted.

    columns: the field -> the column of the file that it is read from. Only the column is written.
    """
    from inlay.files.atomic import write_whole

    lines = (
        json.dumps(
            {**_columns_of(row, columns), "where": row.where, "prediction": prediction},
            ensure_ascii=False,
        )
        for row, prediction in pairs
    )
    write_whole(path, (f"{line}\n".encode() for line in lines))


def _columns_of(row: Example, columns: Columns) -> dict[str, Any]:
    """The fields of a row, without those that repeat a column, or gather several, under a name."""
    repeated = {
        name
        for name, column in columns.items()
        if (name not in column if isinstance(column, list) else name != column)
    }
    return {name: value for name, value in row.fields.items() if name not in repeated}
