"""The command, from its options to a report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inlay_cli import names
from inlay_cli.console import busy, err, write
from inlay_cli.inspect.page import page
from inlay_cli.inspect.report import Comparison, Report, as_json
from inlay_cli.inspect.terminal import show
from inlay_cli.shared import (
    BaseArgument,
    DeviceOption,
    DtypeOption,
    FileArgument,
    QuantizeOption,
    examples,
    open_base,
)

if TYPE_CHECKING:
    from inlay.handle import Inlay
    from inlay_cli.inspect.inputs import Probe


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        "inspect",
        rich_help_panel=panel,
        epilog=examples(
            ("inlay inspect smollm2 run/default.safetensors", "nearest tokens, and attention"),
            ("inlay inspect smollm2 a.safetensors b.safetensors", "do two seeds agree?"),
            ('inlay inspect smollm2 a.safetensors --words "good,bad" --html a.html', "as a page"),
        ),
    )(inspect)


def inspect(
    base: BaseArgument,
    file: FileArgument,
    other: Annotated[
        Path | None,
        typer.Argument(
            metavar="OTHER",
            help="A second inlay, to compare with.",
            autocompletion=names.inlays,
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int, typer.Option("--neighbours", min=1, help="Tokens to list for each position.")
    ] = 5,
    words: Annotated[
        str | None,
        typer.Option(
            help="Words to look for near a prompt, separated by commas. By default the labels of "
            "the recipe.yaml next to FILE.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="A text to measure attention on; may be given several times.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Rows to measure attention on: any file that training reads. By default a few "
            "sentences.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="The most rows of --data.")] = 32,
    template: Annotated[
        str | None,
        typer.Option(
            help="How a row is written, such as '{text} It was'; {p*3} stands for three virtual "
            "tokens. By default as in the recipe.yaml next to FILE, or the text as it is.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write a page with everything.", show_default=False),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="OUT", help="Write every number.", show_default=False),
    ] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
) -> None:
    """Look inside a prompt or prefix: the tokens near it, and the attention it gets.

    Attention is shown by layer and head, next to what a query would give if it attended equally to
    everything it sees.
    """
    if text and data is not None:
        raise typer.BadParameter("give either --text or --data")
    from inlay_cli.inspect.inputs import Probe, rows_of, task_of, template_of, words_of

    rows = rows_of(text, data, limit)
    model, tokenizer = open_base(base, dtype, device, quantize)
    with busy(f"inspecting {file}"):
        from inlay.handle import load
        from inlay.inspect import word_forms

        handle = load(model, file, name="this", tokenizer=tokenizer)
        task = task_of(file)
        tokens = {word: word_forms(tokenizer, word) for word in words_of(words, task, handle)}
        for word in [word for word, ids in tokens.items() if not ids]:
            write(f"left out: {word!r} is not a single token", err())
            del tokens[word]
        probe = Probe(tokenizer, count, tokens, rows, template_of(template, task, rows))
        report = Report(
            base,
            str(file),
            repr(handle.spec),
            *probe.measure(handle, file),
            probe.texts(handle),
            probe.template_for(handle),
            tokenizer,
        )
    if other is not None:
        with busy(f"inspecting {other}"):
            second = load(model, other, name="other", tokenizer=tokenizer)
            comparison = _compare(report, handle, second, other, probe)
            report = replace(report, comparison=comparison)
    if json_file is not None:
        _write_file(json_file, json.dumps(as_json(report), indent=1, ensure_ascii=False))
    if html is not None:
        _write_file(html, page(report))
    show(report)


def _compare(report: Report, first: Inlay, second: Inlay, file: Path, probe: Probe) -> Comparison:
    """Compare a second inlay with the one of a report."""
    from inlay.inspect import compare_prefixes, compare_prompts, share_correlation

    prompts, shares = probe.measure(second, file)
    by_place = {(share.kind, share.attention, share.layers): share for share in shares}
    pairs = [
        (share, by_place.get((share.kind, share.attention, share.layers)))
        for share in report.shares
    ]
    return Comparison(
        str(file),
        repr(second.spec),
        compare_prompts(report.prompts, prompts),
        compare_prefixes(first, second),
        shares,
        [None if match is None else share_correlation(share, match) for share, match in pairs],
    )


def _write_file(path: Path, text: str) -> None:
    from inlay.files.atomic import write_whole

    write_whole(path, text.encode())
