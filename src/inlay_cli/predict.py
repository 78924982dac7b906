"""inlay predict: label, answer or write what a trained inlay was trained for, for new rows."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay_cli.console import busy, err, out, table, write
from inlay_cli.flags import pairs
from inlay_cli.shared import (
    BaseOption,
    DeviceOption,
    DropOption,
    DtypeOption,
    FileArgument,
    QuantizeOption,
    examples,
    open_predictor,
)

if TYPE_CHECKING:
    from inlay.predicting import FileResult, Predictor

STDIN = "-"


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        rich_help_panel=panel,
        epilog=examples(
            (
                "inlay predict runs/reviews/default.safetensors new.csv --out answers.csv",
                "the rows of a file, each with its label and the probabilities",
            ),
            (
                "cat lines.txt | inlay predict runs/reviews/default.safetensors - | head",
                "texts from a pipe, one a line; JSON lines into a pipe",
            ),
        ),
    )(predict)


def predict(
    file: FileArgument,
    data: Annotated[
        str,
        typer.Argument(
            metavar="ROWS",
            help="A file of rows without answers (.csv, .jsonl, .parquet, …); - reads texts from "
            "standard input, one a line, or JSON objects for a task that reads several fields.",
            show_default=False,
        ),
    ],
    target: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The file to write: .csv, .tsv, .jsonl or .parquet. Without it the answers are "
            "shown as a table, or as JSON lines in a pipe.",
            show_default=False,
        ),
    ] = None,
    columns: Annotated[
        list[str],
        typer.Option(
            "--column",
            metavar="FIELD=COLUMN",
            help="The column that holds a field, such as text=review; may be given several times. "
            "By default as in training.",
        ),
    ] = [],  # noqa: B006  # typer's way to say: may be given several times
    split: Annotated[
        str | None,
        typer.Option(help="Which part of a folder or data set of splits.", show_default=False),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(help="Of a text file, such as cp1252; UTF-8 by default.", show_default=False),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(help="Between the cells of a table, such as ';'.", show_default=False),
    ] = None,
    skip_bad_rows: Annotated[
        bool,
        typer.Option(
            "--skip-bad-rows",
            help="Go on after a row that cannot be used: it gets no prediction, and the reason in "
            "a column 'error'.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file OUT.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a batch.")] = 16,
    drop_layers: DropOption = 0,
    base: BaseOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = "auto",
    quantize: QuantizeOption = None,
) -> None:
    """Predict new rows with a trained inlay; its file knows the base and the task.

    Every row is written with its own columns, and what the task predicts of it: a label with
    probabilities, entities with their places, an answer, a number, a choice, a text.
    """
    with busy("starting"):
        from inlay.data.readers import FileForm
        from inlay.predicting.file import predict_file
        from inlay.predicting.writing import check_target

    if target is not None:
        check_target(target, overwrite)
    elif overwrite:
        raise typer.BadParameter("--overwrite is for the file of --out")
    mapping = dict(pairs(columns, "--column", "text=review"))
    predictor = open_predictor(file, base, dtype, device, quantize, drop_layers)
    reading: dict[str, Any] = {
        "split": split,
        "columns": mapping,
        "form": FileForm(encoding=encoding, delimiter=delimiter),
    }
    options: dict[str, Any] = {"batch_size": batch_size, "skip_bad": skip_bad_rows}
    with _source(predictor, data) as source:
        if source is None:
            result = _predict_lines(predictor, target, options)
        elif target is None:
            result = _show_file(predictor, source, {**reading, **options})
        else:
            result = predict_file(
                predictor, source, target, overwrite=overwrite, console=err(), **reading, **options
            )
    _report(result, target)


@contextmanager
def _source(predictor: Predictor, data: str) -> Iterator[str | None]:
    """The source to read; None for texts that come from a pipe.

    JSON objects from a pipe are put into a file first: they are read twice.
    """
    if data != STDIN:
        yield data
    elif len(predictor.task.input_fields) == 1:
        yield None
    else:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "stdin.jsonl"
            with path.open("w", encoding="utf-8") as file:
                file.writelines(sys.stdin)
            yield str(path)


def _predict_lines(
    predictor: Predictor, target: Path | None, options: Mapping[str, Any]
) -> FileResult:
    """Predict texts from a pipe as they come."""
    from inlay.data.inputs import Census
    from inlay.predicting.file import output_columns, predict_lines
    from inlay.predicting.writing import WRITERS

    census = Census(columns={"text": {"text"}})
    columns, names = output_columns(predictor.columns, census, options["skip_bad"])
    if target is None:
        return predict_lines(predictor, sys.stdin, Printer(), names, **options)
    with WRITERS[target.suffix](target, census, columns) as sink:
        return predict_lines(predictor, sys.stdin, sink, names, **options, console=err())


def _show_file(predictor: Predictor, source: str, options: Mapping[str, Any]) -> FileResult:
    """Predict the rows of a file, and print them. options: of `predict_source`."""
    from inlay.predicting.file import predict_source

    console = None if is_terminal() else err()
    return predict_source(predictor, source, lambda *_: Printer(), console=console, **options)


def is_terminal() -> bool:
    """Whether results are shown in a terminal."""
    return sys.stdout.isatty()


class Printer:
    """Prints rows: tables to a terminal, JSON lines into a pipe."""

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Print rows, as soon as they are there."""
        from inlay.predicting.writing import cell, json_text

        if not is_terminal():
            sys.stdout.write("".join(f"{json_text(line)}\n" for line in lines))
            sys.stdout.flush()
            return
        from rich.text import Text

        names = list(dict.fromkeys(name for line in lines for name in line))
        shown = table()
        for name in names:
            shown.add_column(name)
        for line in lines:
            shown.add_row(*(Text(cell(line.get(name))) for name in names))
        out().print(shown)

    def __enter__(self) -> Printer:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _report(result: FileResult, target: Path | None) -> None:
    """Say what was written, what was left out, and how columns were renamed."""
    from inlay.data.dataset import describe_skipped

    for line in describe_skipped(result.skipped, "the predictions"):
        write(line, err())
    if result.bad > len(result.skipped):
        write(f"  {result.bad:,} in all", err())
    renamed = {new for name, new in result.names.items() if name != new}
    if renamed:
        write(
            "the rows have columns of the predictions' names already; these are now "
            f"{', '.join(sorted(renamed))}",
            err(),
        )
    rows = "1 row" if result.rows == 1 else f"{result.rows:,} rows"
    place = "" if target is None else f" to {target}"
    if result.stopped:
        message = f"stopped after {rows}" + ("" if target is None else f", which {target} holds")
        write(message, err())
        raise KeyboardInterrupt(message)
    if target is not None:
        write(f"wrote {rows}{place}", err())
