"""inlay merge: fold an inlay into its base, and write an ordinary transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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

HEAD = "head.safetensors"
"""The file of a trained head, which cannot be folded."""


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        rich_help_panel=panel,
        epilog=examples(
            ("inlay merge smollm2 legal.safetensors ./smollm2-legal", "write the merged model"),
            ('inlay generate ./smollm2-legal "Dear Sir"', "use it like any other model"),
        ),
    )(merge)


def merge(
    base: BaseArgument,
    file: FileArgument,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The folder to write; it must not exist yet.", show_default=False
        ),
    ],
    dtype: DtypeOption = None,
) -> None:
    """Fold an inlay into its base's weights, and write a transformers folder.

    The folder is written completely or not at all. A trained head cannot be folded: it is written
    into the same folder as a file of its own, which loads on the merged model.
    """
    from inlay.files.atomic import write_folder
    from inlay.handle import attached

    def write_model(new: Path) -> None:
        for head in list(attached(model).values()):
            head.save(new / HEAD, tokenizer=tokenizer)
            head.detach()
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)

    refuse_existing(folder, "folder")
    model, tokenizer = open_base(base, dtype or "stored")
    with busy("merging"):
        handle = open_inlay(model, tokenizer, file)
        spec = handle.spec
        handle.merge()
    with busy(f"writing {folder}"):
        write_folder(folder, write_model)
    head = f", with its head in {HEAD}" if (folder / HEAD).exists() else ""
    megabytes = sum(path.stat().st_size for path in folder.rglob("*")) / 1e6
    write(f"merged {spec!r} into {folder}{head} ({megabytes:,.0f} MB)")
