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

HEAD = "head.safetensors"
"""The file of a head that cannot be folded."""


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
    """Fold an inlay into its base's weights; writes a transformers folder, whole or not at all.

    A trained head cannot be folded: it is written into the same folder as a file of its own, which
    loads on the new base alone.
    """
    from inlay.files.atomic import write_folder
    from inlay.handle import attached

    def write(new: Path) -> None:
        for head in list(attached(model).values()):
            head.save(new / HEAD, tokenizer=tokenizer)
            head.detach()
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)

    refuse_taken(folder, "folder")
    model, tokenizer = open_base(base, dtype or "stored")
    with busy("folding"):
        handle = open_inlay(model, tokenizer, file)
        spec = handle.spec
        handle.merge()
    with busy(f"writing {folder}"):
        write_folder(folder, write)
    beside = f", its head beside it in {HEAD}" if (folder / HEAD).exists() else ""
    size = sum(path.stat().st_size for path in folder.rglob("*")) / 1e6
    said = f"{spec!r} is folded in{beside}: {folder} ({size:,.0f} MB)"
    out().print(said, markup=False, soft_wrap=True)
