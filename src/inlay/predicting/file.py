"""predict_file: predictions for the rows of a file, row by row into another file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from inlay.data.dataset import Skipped
from inlay.data.fields import Columns
from inlay.data.inputs import Census, InputRow, text_lines
from inlay.data.readers import FileForm
from inlay.data.sources import open_source
from inlay.errors import DataError, FileError
from inlay.predicting.predictor import CHUNK_BATCHES, Predictor, chunked
from inlay.predicting.writing import check_target, rounded
from inlay.tasks.records import Column, Record
from inlay.training.loop.progress import ProgressDisplay
from inlay.training.loop.signals import SignalHandler

ERROR = Column("error", "text", "why a row has no prediction; null where it has one")

MAX_KEPT = 1000
"""How many bad rows a result names; memory must not grow with a file."""


@dataclass
class FileResult:
    """What came of the rows of a file.

    rows: how many were written. bad: how many of them have no prediction. skipped: the first of
    these. stopped: whether Ctrl-C ended it before the last row. names: what the columns of the
    predictions are called in the output, by their names in records.
    """

    rows: int = 0
    bad: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    stopped: bool = False
    names: dict[str, str] = field(default_factory=dict)


class Sink(Protocol):
    """What takes the rows of the output."""

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        """Take rows: their own columns, then those of the prediction."""


class _Stopped(Exception):
    """Ctrl-C."""


def predict_file(
    predictor: Predictor,
    source: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    columns: Columns | None = None,
    separator: str | None = None,
    form: FileForm | None = None,
    batch_size: int = 16,
    skip_bad: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> FileResult:
    """Predict the rows of a file or another source, and write them with their predictions.

    Args:
        predictor: what predicts.
        source: a file, a folder with `split`, or another source of `inlay.data.load`. Gold answers
            in it are copied, and not looked at.
        out: the file to write, `.csv`, `.tsv`, `.jsonl` or `.parquet`: a line for every row of the
            source, in its order, with its own columns as they are, and those of the prediction.
        split: which part of the source.
        columns: field -> the column that holds it.
        separator: what separates the items of a list that is written as one text.
        form: the format, encoding and delimiter of the file, where its name does not say them.
        batch_size: rows in a batch.
        skip_bad: write a bad row without a prediction and with the reason in a column `error`,
            instead of ending with it.
        overwrite: replace the file `out`.
        console: where progress is shown; None for nowhere.

    The source is read twice, the first time to count its rows and columns. Memory does not grow
    with its length. Ctrl-C ends after a batch, and leaves whole rows.

    Raises DataError for a source or, without `skip_bad`, a row that cannot be used, and FileError
    where `out` exists or cannot be written. Rows that were written before stay.
    """
    path = Path(out)
    writer = check_target(path, overwrite)
    if Path(source).exists() and Path(source).resolve() == path.resolve():
        raise FileError(f"{path} holds the rows to predict; write the predictions to another file")
    return predict_source(
        predictor,
        source,
        lambda own, record_columns: writer(path, own, record_columns),
        split=split,
        columns=columns,
        separator=separator,
        form=form,
        batch_size=batch_size,
        skip_bad=skip_bad,
        console=console,
    )


def predict_source(
    predictor: Predictor,
    source: str | Path,
    open_sink: Callable[[Census, Sequence[Column]], AbstractContextManager[Sink]],
    *,
    split: str | None = None,
    columns: Columns | None = None,
    separator: str | None = None,
    form: FileForm | None = None,
    batch_size: int = 16,
    skip_bad: bool = False,
    console: Console | None = None,
) -> FileResult:
    """Predict the rows of a source and give them to a sink; the rest is as in `predict_file`.

    open_sink: takes the rows' own columns and those of the predictions.
    """
    parse = predictor.parser(columns, separator)
    name, first_pass = open_source(source, split, form)
    census = Census.of(first_pass)
    if not census.rows:
        raise DataError(f"{name} holds no rows; give a source that has some")
    record_columns, names = output_columns(predictor.columns, census, skip_bad)
    inputs = (parse(where, row) for where, row in open_source(source, split, form)[1])
    with open_sink(census, record_columns) as sink:
        return predict_rows(
            predictor,
            inputs,
            sink,
            names,
            total=census.rows,
            batch_size=batch_size,
            skip_bad=skip_bad,
            console=console,
        )


def predict_lines(
    predictor: Predictor,
    lines: Iterable[str],
    sink: Sink,
    names: dict[str, str],
    *,
    name: str = "standard input",
    batch_size: int = 16,
    skip_bad: bool = False,
    console: Console | None = None,
) -> FileResult:
    """Predict texts, one a line, as they come; see `predict_file`.

    lines: of the texts. sink: takes the output. names: from `output_columns`. name: of the source.
    """
    inputs = (predictor.text_row(where, text) for where, text in text_lines(lines, name))
    return predict_rows(
        predictor, inputs, sink, names, total=None, batch_size=batch_size, skip_bad=skip_bad,
        console=console, chunk=batch_size,
    )  # fmt: skip


def output_columns(
    columns: Sequence[Column], own: Census, with_error: bool
) -> tuple[list[Column], dict[str, str]]:
    """The columns of predictions in a file, and their names there by their names in records.

    Where a row has a column of one of these names itself, as a file of predictions has, all of
    them get `inlay_` before their names, or `inlay2_` and so on.
    """
    wanted = [*columns, *([ERROR] if with_error else [])]
    number, prefix = 1, ""
    while any(prefix + column.name in own.columns for column in wanted):
        prefix = f"inlay{number if number > 1 else ''}_"
        number += 1
    names = {column.name: prefix + column.name for column in wanted}
    return [replace(column, name=names[column.name]) for column in wanted], names


def predict_rows(
    predictor: Predictor,
    inputs: Iterable[InputRow],
    sink: Sink,
    names: dict[str, str],
    *,
    total: int | None,
    batch_size: int,
    skip_bad: bool,
    console: Console | None,
    chunk: int | None = None,
) -> FileResult:
    """Predict rows in chunks, and give every chunk to a sink; see `predict_file`.

    total: how many rows there are; None where that is not known. chunk: how many are read at once.
    """
    result, signals = FileResult(names=names), SignalHandler()

    def check() -> None:
        if signals.stop_requested:
            raise _Stopped

    display = ProgressDisplay(console or Console(quiet=True))
    with display, display.counting("predicting", total) as advance, signals:
        try:
            for part in chunked(inputs, chunk or batch_size * CHUNK_BATCHES):
                check()
                shown = _Counter(advance if total is not None else None, check)
                outcomes = list(_outcomes(predictor, part, batch_size, skip_bad, shown))
                sink.write([_line(row, o, names) for row, o in zip(part, outcomes, strict=True)])
                shown.finish(len(part))
                result.rows += len(part)
                for row, outcome in zip(part, outcomes, strict=True):
                    if isinstance(outcome, str):
                        result.bad += 1
                        if len(result.skipped) < MAX_KEPT:
                            result.skipped.append(Skipped(row.where, outcome))
        except _Stopped:
            result.stopped = True
    return result


class _Counter:
    """Counts the rows of one chunk for the progress, and lets Ctrl-C in after every batch."""

    def __init__(self, advance: Callable[[int], None] | None, check: Callable[[], None]):
        self.advance = advance
        self.check = check
        self.done = 0

    def __call__(self, rows: int) -> None:
        self.done += rows
        if self.advance is not None:
            self.advance(rows)
        self.check()

    def finish(self, rows: int) -> None:
        """Count the rest, such as bad rows."""
        if self.advance is not None and rows > self.done:
            self.advance(rows - self.done)


def _outcomes(
    predictor: Predictor,
    part: Sequence[InputRow],
    batch_size: int,
    skip_bad: bool,
    advance: Callable[[int], None],
) -> Iterator[Record | str]:
    """A record for every row, or why there is none. Raises DataError without `skip_bad`."""
    problems = {n: row.problem for n, row in enumerate(part) if row.problem is not None}
    if problems and not skip_bad:
        raise _bad_row(part[min(problems)].where, problems[min(problems)])
    good = [row for row in part if row.problem is None]
    records: list[Record] = []
    try:
        records = predictor.records(good, batch_size=batch_size, advance=advance) if good else []
    except DataError:
        for number, row in enumerate(part):
            if row.problem is None and (reason := predictor.problem_of(row)) is not None:
                if not skip_bad:
                    raise _bad_row(row.where, reason) from None
                problems[number] = reason
        good = [row for number, row in enumerate(part) if number not in problems]
        records = predictor.records(good, batch_size=batch_size, advance=advance) if good else []
    remaining = iter(records)
    for number in range(len(part)):
        problem = problems.get(number)
        yield next(remaining) if problem is None else problem


def _bad_row(where: str, problem: str) -> DataError:
    return DataError(f"{where}: {problem}; --skip-bad-rows goes on without such rows")


def _line(row: InputRow, outcome: Record | str, names: dict[str, str]) -> dict[str, Any]:
    """A row of the output."""
    line = {str(name): value for name, value in row.columns.items()}
    if isinstance(outcome, str):
        return line | dict.fromkeys(names.values()) | {names[ERROR.name]: outcome}
    return line | {new: rounded(outcome.get(name)) for name, new in names.items()}
