"""Predictions over a data set, in batches of similar lengths, and their scores.

Examples are taken in chunks: only the rows of one chunk are encoded at a time, and of an example
that has its prediction only what the score needs is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from itertools import islice
from typing import Any

from accelerate.utils import gather_object
from rich.console import Console
from transformers import PreTrainedModel

from inlay.core.modes import evaluating
from inlay.data.dataset import Example, Skipped, bad_rows
from inlay.errors import DataError
from inlay.tasks import Prediction, Row, Task
from inlay.tasks.records import Record
from inlay.tasks.usable import encode_usable
from inlay.training.loop.batches import batches_by_length
from inlay.training.loop.launch import processes
from inlay.training.loop.moving import on_device
from inlay.training.loop.progress import ProgressDisplay

RowPrediction = tuple[int, Any]
"""The number of a row, and its prediction."""

CHUNK = 1000
"""How many examples are encoded at once. Rows of similar lengths are found within a chunk."""

MAX_INTERNED = 1000
"""Up to so many different gold examples are kept as one object where they are equal."""


PlainRow = Example | Mapping[str, Any] | str
"""A row to predict: an example, its fields, or a text for a task that reads one."""


def predict(
    model: PreTrainedModel,
    task: Task,
    data: Iterable[PlainRow],
    *,
    batch_size: int | None = 16,
    tokens: int | None = None,
    console: Console | None = None,
    what: str = "rows",
) -> list[Prediction]:
    """Predict every example of a data set.

    Args:
        model: the base, on its device.
        task: bound to it.
        data: a data set, or anything that yields examples, the fields of examples, or texts.
        batch_size: rows in a batch; None where `tokens` decides.
        tokens: the most tokens in a batch, padding included.
        console: where progress is shown; None for nowhere.
        what: the name of the data in the progress.

    Returns one prediction for every example, in their order. Several processes share the work, and
    each returns everything.

    Raises DataError, which names the row, for one that is neither, or that the task cannot use.
    """
    pairs = predict_each(
        model, task, data, batch_size=batch_size, tokens=tokens, console=console, what=what
    )
    return [prediction for _, prediction in pairs]


def evaluate(
    model: PreTrainedModel,
    task: Task,
    data: Iterable[Example | Mapping[str, Any]],
    *,
    batch_size: int | None = 16,
    tokens: int | None = None,
    console: Console | None = None,
    what: str = "rows",
) -> dict[str, float]:
    """The task's metrics of the model's predictions; arguments as in `predict`.

    Where `data` is not in memory itself, such as a `Stream`, only the predictions and what they are
    scored against are kept.
    """
    collector = PredictionCollector(task)
    pairs = predict_each(
        model, task, data, batch_size=batch_size, tokens=tokens, console=console, what=what
    )
    for _ in collector.collect(pairs):
        pass
    return collector.score()


def predict_each(
    model: PreTrainedModel,
    task: Task,
    data: Iterable[PlainRow],
    *,
    batch_size: int | None = 16,
    tokens: int | None = None,
    console: Console | None = None,
    what: str = "rows",
    bad: list[Skipped] | None = None,
) -> Iterator[tuple[Example, Prediction]]:
    """Yield every example with its prediction, in order, chunk by chunk; arguments as in `predict`.

    The model is in evaluation mode until the last pair is taken.

    bad: where examples that cannot be encoded are added, which are then left out; None raises
        DataError for them.
    """
    total = len(data) if isinstance(data, Sized) else None
    with (
        ProgressDisplay(console or Console(quiet=True)) as display,
        evaluating(model),
        display.counting(f"evaluating {what}", total) as advance,
    ):
        remaining = chunks(examples_of(task, data))
        for examples in remaining:
            chunk, rows = _encode(task, examples, remaining, bad)
            del examples
            if not chunk:
                continue
            results: list[RowPrediction] = []
            done = 0
            for part in predict_rows(model, task, rows, batch_size, tokens):
                results += part
                count = len(results) * processes().num_processes * len(chunk) // len(rows)
                if total is not None:
                    advance(count - done)
                done = count
            predictions = merge_predictions(task, rows, results, chunk)
            del rows, results
            yield from zip(chunk, predictions, strict=True)
            del chunk, predictions


def examples_of(task: Task, data: Iterable[PlainRow]) -> Iterator[Example]:
    """Rows as examples. Raises DataError for a row that is none, and for one row alone."""
    if isinstance(data, str | Mapping):
        raise DataError(f"{data!r:.60} is one row, and a list of rows is read; write [row]")
    for number, row in enumerate(data, 1):
        where = f"row {number}"
        if isinstance(row, Example):
            yield row
        elif isinstance(row, str):
            yield Example(task.inputs_of_text(row), where)
        elif isinstance(row, Mapping):
            present = {str(name): value for name, value in row.items() if value is not None}
            yield Example(task.complete_inputs(present), where)
        else:
            raise DataError(
                f"row {number} is {row!r:.60}, not a row; give a mapping of its fields, such as "
                '{"text": "…"}, or what inlay.data.load returns'
            )


def record_each(
    model: PreTrainedModel,
    task: Task,
    data: Iterable[PlainRow],
    *,
    temperature: float = 1.0,
    batch_size: int | None = 16,
    console: Console | None = None,
    what: str = "rows",
    bad: list[Skipped] | None = None,
) -> Iterator[tuple[Example, Record]]:
    """Yield every example with its record, in order, chunk by chunk; arguments as in `records_of`.

    The model is in evaluation mode until the last pair is taken.

    bad: as in `predict_each`.
    """
    total = len(data) if isinstance(data, Sized) else None
    with (
        ProgressDisplay(console or Console(quiet=True)) as display,
        evaluating(model),
        display.counting(f"evaluating {what}", total) as advance,
    ):
        remaining = chunks(examples_of(task, data))
        for examples in remaining:
            chunk, _ = _encode(task, examples, remaining, bad)
            step = None if total is None else advance
            records = records_of(
                model, task, chunk, temperature=temperature, batch_size=batch_size, advance=step
            )
            yield from zip(chunk, records, strict=True)
            del chunk, records


def records_of(
    model: PreTrainedModel,
    task: Task,
    examples: Sequence[Example],
    *,
    temperature: float = 1.0,
    batch_size: int | None = 16,
    tokens: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> list[Record]:
    """A record for every example, in their order; their gold answers are not read.

    The model must be in evaluation mode. Arguments as in `predict`, and:

        temperature: of the task's probabilities.
        advance: called after every batch with how many more rows are done.
    """
    names = task.target_fields
    bare = [
        Example({k: v for k, v in example.fields.items() if k not in names}, example.where)
        for example in examples
    ]
    rows = [replace(row, labels=None) for row in task.encode_all(bare)]
    records: list[Record] = [{} for _ in rows]
    costs, windows = [len(row) for row in rows], len(rows) != len(bare)
    for numbers in batches_by_length(costs, rows=batch_size, tokens=tokens):
        batch = task.collate([rows[number] for number in numbers]).to(model.device)
        for number, record in zip(numbers, task.records(model, batch, temperature), strict=True):
            records[number] = record
        if advance is not None and not windows:
            advance(len(numbers))
    if advance is not None and windows:
        advance(len(bare))
    return task.merge_records(rows, records, bare)


def _encode(
    task: Task,
    chunk: list[Example],
    remaining: Iterator[list[Example]],
    bad: list[Skipped] | None,
) -> tuple[list[Example], list[Row]]:
    """The usable examples of a chunk, and their rows.

    Args:
        task: bound to a model.
        chunk: the examples.
        remaining: the chunks after it, whose bad examples an error counts too.
        bad: as in `predict_each`.
    """
    if bad is not None:
        usable = encode_usable(task.encode_some, chunk)
        bad += usable.bad
        return usable.examples, usable.rows
    try:
        return chunk, task.encode_all(chunk)
    except DataError as error:
        found = list(encode_usable(task.encode_some, chunk).bad)
        for later in remaining:
            found += encode_usable(task.encode_some, later).bad
        raise bad_rows(found) if found else error from None


def chunks(data: Iterable[Example]) -> Iterator[list[Example]]:
    """Split data into lists of the examples that are encoded at once."""
    remaining = iter(data)
    while True:
        if not (chunk := list(islice(remaining, CHUNK))):
            return
        yield chunk
        del chunk  # before the next ones are read


class PredictionCollector:
    """Keeps predictions and what they are scored against: all that an evaluation needs.

    task: scores them.
    predictions: one for each example.
    gold: the examples, with only the fields that the task names as `gold_fields`; equal ones are
        mostly one object.
    """

    def __init__(self, task: Task):
        self.task = task
        self.predictions: list[Prediction] = []
        self.gold: list[Example] = []
        self._interned: dict[Any, Example] = {}

    def collect(
        self, pairs: Iterable[tuple[Example, Prediction]]
    ) -> Iterator[tuple[Example, Prediction]]:
        """Keep what is needed of the pairs, and yield them."""
        for example, prediction in pairs:
            self.predictions.append(prediction)
            self.gold.append(self._gold(example))
            yield example, prediction

    def score(self) -> dict[str, float]:
        """The task's metrics of everything collected."""
        return self.task.score(self.predictions, self.gold)

    def confusion(self) -> dict[str, dict[str, int]]:
        """The task's confusion matrix of everything collected."""
        return self.task.confusion(self.predictions, self.gold)

    def _gold(self, example: Example) -> Example:
        """The example with its gold fields only."""
        names = self.task.gold_fields
        if names is None:
            return example
        fields = {name: example.fields[name] for name in names if name in example.fields}
        if any(isinstance(value, list) for value in fields.values()):
            return Example(fields, example.where)
        # 1, 1.0 and True are equal, and three labels.
        key = tuple((name, type(value), value) for name, value in fields.items())
        if key in self._interned or len(self._interned) < MAX_INTERNED:
            return self._interned.setdefault(key, Example(fields, example.where))
        return Example(fields, example.where)


def encode_rows(
    task: Task, data: Sequence[Example], what: str, display: ProgressDisplay
) -> list[Row]:
    """All examples as rows, with progress; what: the name of the data there."""
    with display.counting(f"encoding {what}", len(data)) as advance:
        return task.encode_all(data, advance)


def predict_rows(
    model: PreTrainedModel,
    task: Task,
    rows: Sequence[Row],
    batch_size: int | None,
    tokens: int | None,
) -> Iterator[list[RowPrediction]]:
    """Yield this process's share of the predictions, batch by batch.

    The model must be in evaluation mode.
    """
    state = processes()
    costs = [len(row) for row in rows]
    batches = batches_by_length(costs, rows=batch_size, tokens=tokens)
    for numbers in batches[state.process_index :: state.num_processes]:
        with on_device(model, task.collate([rows[number] for number in numbers])) as batch:
            predictions = task.predict(model, batch)
        yield list(zip(numbers, predictions, strict=True))


def merge_predictions(
    task: Task, rows: Sequence[Row], results: list[RowPrediction], data: Sequence[Example]
) -> list[Prediction]:
    """One prediction for every example, in order, from the row predictions of all processes."""
    gathered = gather_object(results) if processes().num_processes > 1 else results
    predictions = [prediction for _, prediction in sorted(gathered, key=lambda pair: pair[0])]
    return task.merge_windows(rows, predictions, data)
