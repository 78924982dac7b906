"""inlay export: write an inlay in another form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from inlay_cli.console import busy, write
from inlay_cli.shared import (
    BaseArgument,
    DtypeOption,
    FileArgument,
    examples,
    open_base,
    open_inlay,
    refuse_existing,
)


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        rich_help_panel=panel,
        epilog=examples(
            (
                "inlay export smollm2 runs/reviews/default.safetensors reviews-prefix.safetensors",
                "a trained prompt as a prefix: the same answers, without extra positions",
            ),
            ('inlay generate smollm2 reviews-prefix.safetensors "A fine film."', "use it"),
        ),
    )(export)


def export(
    base: BaseArgument,
    file: FileArgument,
    path: Annotated[
        Path, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)
    ],
    form: Annotated[
        Literal["prefix"],
        typer.Option(
            "--as",
            help="prefix: the prompt of a causal model as extra keys and values.",
        ),
    ] = "prefix",
    dtype: DtypeOption = None,
) -> None:
    """Write an inlay in another form that gives the same answers."""
    refuse_existing(path, "file")
    model, tokenizer = open_base(base, dtype)
    with busy("exporting"):
        from inlay.compile_prompt import compile_prompt

        handle = open_inlay(model, tokenizer, file)
        spec = handle.spec
        exported = compile_prompt(handle)
        exported.save(path, tokenizer=tokenizer)
    write(f"wrote {spec!r} as {exported.spec!r}: {path} ({path.stat().st_size / 1024:,.0f} kB)")
