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
    DeviceOption,
    DtypeOption,
    QuantizeOption,
    base_and_files,
    examples,
    open_base,
    usage_of,
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
            ("inlay inspect run/default.safetensors", "nearest tokens, attention, gates"),
            ("inlay inspect smollm2 a.safetensors b.safetensors", "do two seeds agree?"),
            ('inlay inspect a.safetensors --words "good,bad" --html a.html', "as a page"),
            ("inlay inspect fused.safetensors --data dev.csv --json a.json", "what it listens to"),
        ),
    )(inspect)


def inspect(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="[BASE] FILE [OTHER]",
            help="A trained inlay, before it another base than that of its training, and after it "
            "a second inlay to compare with.",
            autocompletion=names.bases_or_inlays,
            show_default=False,
        ),
    ],
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
    """Look inside an inlay: tokens near a prompt, attention on a prefix, what pieces decide.

    Attention on prompts and prefixes is shown by layer and head, next to what a query would give if
    it attended equally to everything it sees. Of a fusion it shows what each layer listens to, and
    of gates their values, by layer and by text.
    """
    if text and data is not None:
        raise typer.BadParameter("give either --text or --data")
    from inlay_cli.inspect.inputs import Probe, rows_of, task_of, template_of, words_of

    base, file, other, trained_with = _places(places)
    rows = rows_of(text, data, limit)
    model, tokenizer = open_base(base, dtype, device, quantize or trained_with)
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
        measured = probe.measure(handle, file)
        report = Report(
            base,
            str(file),
            repr(handle.spec),
            measured.prompts,
            measured.shares,
            measured.readings,
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


def _places(words: list[str]) -> tuple[str, Path, Path | None, str | None]:
    """The base, the inlay's file, that of a second if there is one, and how the base was kept."""
    base, files = base_and_files(words)
    if not 1 <= len(files) <= 2:
        raise typer.BadParameter("give a FILE, or two to compare: inlay inspect FILE [OTHER]")
    usage = usage_of(files[0], base)
    place = usage.base_path(files[0]) if base is None and usage is not None else base
    assert place is not None
    quantize = None if usage is None else usage.quantize
    return place, files[0], files[1] if len(files) == 2 else None, quantize


def _compare(report: Report, first: Inlay, second: Inlay, file: Path, probe: Probe) -> Comparison:
    """Compare a second inlay with the one of a report."""
    from inlay.inspect import compare_prefixes, compare_prompts, share_correlation

    measured = probe.measure(second, file)
    prompts, shares = measured.prompts, measured.shares
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
