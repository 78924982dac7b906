"""inlay merge: fold an inlay into its base, and write an ordinary transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
            ("inlay merge smollm2 legal.safetensors ./smollm2-legal", "fold it in"),
            ('inlay generate ./smollm2-legal "Dear Sir"', "it is a model like any other now"),
        )
    )(merge)


def merge(
    base: BaseArgument,
    file: FileArgument,
    folder: Annotated[
        Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist yet.")
    ],
    dtype: DtypeOption = None,
) -> None:
    """Fold an inlay into its base's weights; writes a transformers folder, whole or not at all."""
    from inlay.state import write_folder

    refuse_taken(folder, "folder")
    model, tokenizer = open_base(base, dtype)
    with busy("folding"):
        handle = open_inlay(model, tokenizer, file)
        spec = handle.spec
        handle.merge()
    with busy(f"writing {folder}"):
        write_folder(folder, lambda new: [part.save_pretrained(new) for part in (model, tokenizer)])
    size = sum(path.stat().st_size for path in folder.rglob("*")) / 1e6
    out().print(f"{spec!r} is folded in: {folder} ({size:,.0f} MB)", markup=False, soft_wrap=True)
