"""inlay eval: score a base, or inlays side by side, on rows that have answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay_cli import names
from inlay_cli.console import busy, err, out, table, write
from inlay_cli.flags import flags, with_flags
from inlay_cli.scoring import Scored, make_plan, score
from inlay_cli.shared import (
    DeviceOption,
    DropOption,
    Dtype,
    DtypeOption,
    Opened,
    QuantizeOption,
    SkipOption,
    attach_file,
    base_and_files,
    examples,
    open_base,
    usage_of,
)

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_LABELS = 10
"""With more labels the confusion is not shown as a table; JSON always has it."""

LONGEST_TEXT = 160
"""How many characters of a text the table of errors shows."""


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        "eval",
        rich_help_panel=panel,
        epilog=examples(
            ("inlay eval runs/e2e/default.safetensors", "on the rows of its recipe"),
            (
                "inlay eval runs/e2e/default.safetensors --data new.csv --errors 20",
                "on other rows, and the worst mistakes",
            ),
            ("inlay eval runs/*/default.safetensors --data new.csv", "several side by side"),
            ("inlay eval smollm2 --data new.csv --task generate", "the base alone"),
            (
                "inlay eval runs/reviews/default.safetensors --drop-layers 4",
                "without the pieces of the four lowest layers",
            ),
        ),
    )(with_flags(evaluate, flags("eval")))


def evaluate(
    fields: dict[str, str],
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[BASE] [FILE]…",
            help="Trained inlays, which know their base and task; or a base, alone or with the "
            "inlays to score on it.",
            autocompletion=names.bases_or_inlays,
            show_default=False,
        ),
    ],
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="The recipe that describes the task. By default what FILE says, and the rows of "
            "the recipe.yaml next to it.",
            autocompletion=names.recipes,
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a batch.")] = 16,
    errors: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Show the N worst mistakes, with their texts."),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Write a JSON line for each row here, with its prediction.",
            show_default=False,
        ),
    ] = None,
    drop_layers: DropOption = 0,
    skip_bad_rows: SkipOption = False,
    dtype: DtypeOption = None,
    device: DeviceOption = "auto",
    quantize: QuantizeOption = None,
) -> None:
    """Score a base or inlays on rows that have answers.

    Task and rows come from the file and its recipe; what is given as an option wins over them.
    """
    base, files = base_and_files(words)
    if predictions is not None and len(files) > 1:
        raise typer.BadParameter("--predictions is for one FILE")
    if drop_layers and not files:
        raise typer.BadParameter("--drop-layers leaves layers of an inlay out; give its FILE")
    with busy("starting"):
        from inlay.data.dataset import describe_skipped
        from inlay.training.loop.launch import processes

    if skip_bad_rows:
        fields["data.skip_bad"] = "true"
    options: dict[str, Any] = {
        "batch_size": batch_size, "errors": errors, "predictions": predictions,
    }  # fmt: skip
    scored = _score_all(base, files, fields, recipe, dtype, device, quantize, drop_layers, options)
    if not processes().is_main_process:  # one report, however many processes share the work
        return
    if as_json and len(scored) == 1:
        sys.stdout.write(json.dumps(scored[0].to_json(errors > 0)) + "\n")
    elif as_json:
        results = {entry.name: entry.to_json(errors > 0) for entry in scored}
        sys.stdout.write(json.dumps(results) + "\n")
    else:
        _show(scored, errors)
    for entry in scored:
        for line in describe_skipped(entry.skipped, entry.source):
            write(line, err())


def _score_all(
    base: str | None,
    files: Sequence[Path],
    fields: Mapping[str, str],
    recipe: Path | None,
    dtype: Dtype | None,
    device: str,
    quantize: str | None,
    drop_layers: int,
    options: Mapping[str, Any],
) -> list[Scored]:
    """The scores of every file, or of the base alone; a base that several share is loaded once."""
    if not files:
        assert base is not None
        plan = make_plan(base, fields, None, recipe)
        model, tokenizer = open_base(base, dtype, device, quantize)
        return [score("the base alone", plan, Opened(model, tokenizer, None, None), **options)]
    usages = [usage_of(file, base) for file in files]
    places = [
        usage.base_path(file) if base is None and usage is not None else str(base)
        for file, usage in zip(files, usages, strict=True)
    ]
    plans = [
        make_plan(place, fields, file, recipe, usage)
        for place, file, usage in zip(places, files, usages, strict=True)
    ]
    scored: list[Scored] = []
    loaded: dict[tuple[str, str | None], tuple[PreTrainedModel, PreTrainedTokenizerBase]] = {}
    names_of = _names(files)
    for place, file, usage, plan in zip(places, files, usages, plans, strict=True):
        quantized = quantize or (None if usage is None else usage.quantize)
        if (place, quantized) not in loaded:
            loaded = {(place, quantized): open_base(place, dtype, device, quantized)}
        with busy(f"reading {file}"):
            model, tokenizer = loaded[place, quantized]
            opened = attach_file(model, tokenizer, file, usage, drop_layers)
        scored.append(score(names_of[file], plan, opened, **options))
        assert opened.handle is not None
        opened.handle.detach()
    return scored


def _names(files: Sequence[Path]) -> dict[Path, str]:
    """What files are called: their names, with as much of their folders as tells them apart."""
    names = {file: file.stem for file in files}
    depth = 1
    while len(set(names.values())) < len(set(files)) and depth < 20:
        depth += 1
        names = {file: "/".join([*file.parts[-depth:-1], file.stem]) for file in files}
    return names


def _show(scored: Sequence[Scored], errors: int) -> None:
    """Print the scores of all files side by side, and what there is of each one."""
    out().print(_score_table(scored))
    for entry in scored:
        of_file = f" of {entry.name}" if len(scored) > 1 else ""
        if 0 < len(entry.confusion) <= MOST_LABELS:
            out().print(_confusion_table(entry.confusion, of_file))
        if errors:
            out().print(_error_table(entry, of_file))


def _score_table(scored: Sequence[Scored]) -> Table:
    """A line for each metric, a column for each file; the task's own metric is bold."""
    lines = table()
    counts = {entry.rows for entry in scored}
    lines.add_column(f"{scored[0].rows} rows" if len(counts) == 1 else "")
    for entry in scored:
        lines.add_column(entry.name, justify="right")
    if len(counts) > 1:
        lines.add_row("rows", *(str(entry.rows) for entry in scored))
    for name in dict.fromkeys(name for entry in scored for name in entry.scores):
        values = (f"{e.scores[name]:.4f}" if name in e.scores else "" for e in scored)
        bold = any(name == entry.metric for entry in scored)
        lines.add_row(name, *values, style="bold" if bold else "")
    return lines


def _error_table(entry: Scored, of_file: str) -> Table:
    """The worst mistakes, the worst first."""
    from rich.text import Text

    lines = table(f"The worst of {entry.mistakes:,} mistakes{of_file}")
    for name in ("row", "text", "gold", "prediction", "probability"):
        lines.add_column(name, justify="right" if name == "probability" else "left")
    for row in entry.wrong:
        text = row.text if len(row.text) <= LONGEST_TEXT else f"{row.text[:LONGEST_TEXT]}…"
        share = "" if row.probability is None else f"{row.probability:.3f}"
        gold, prediction = (_plain(value) for value in (row.gold, row.prediction))
        lines.add_row(*(Text(cell) for cell in (row.where, text, gold, prediction, share)))
    return lines


def _plain(value: Any) -> str:
    """An answer as text."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _confusion_table(confusion: Mapping[str, Mapping[str, int]], of_file: str) -> Table:
    """A line for each true label, a column for each predicted one."""
    from rich.text import Text

    lines = table(f"Rows by label, and by predicted label{of_file}")
    lines.add_column("label")
    for name in confusion:
        lines.add_column(Text(name), justify="right")
    for name, counts in confusion.items():
        lines.add_row(Text(name), *map(str, counts.values()))
    return lines
