"""inlay export: write an inlay in another form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from inlay_cli.console import busy, out
from inlay_cli.shared import (
    BaseArgument,
    DtypeOption,
    FileArgument,
    examples,
    open_base,
    open_inlay,
    refuse_taken,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog=examples(
            (
                "inlay export smollm2 runs/reviews/default.safetensors reviews-prefix.safetensors",
                "a trained prompt as keys and values: the same answers, no positions to run",
            ),
            ('inlay generate smollm2 reviews-prefix.safetensors "A fine film."', "use it"),
        )
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
            "--as", help="prefix: prompts in front of a causal model become keys and values."
        ),
    ] = "prefix",
    dtype: DtypeOption = None,
) -> None:
    """Write an inlay in another form that gives the same answers."""
    refuse_taken(path, "file")
    model, tokenizer = open_base(base, dtype)
    with busy("compiling"):
        from inlay.compile_prompt import compile_prompt

        before = open_inlay(model, tokenizer, file)
        spec = before.spec
        after = compile_prompt(before)
        after.save(path, tokenizer=tokenizer)
    size = path.stat().st_size / 1024
    out().print(
        f"{spec!r} is {after.spec!r} now: {path} ({size:,.0f} kB)", markup=False, soft_wrap=True
    )
