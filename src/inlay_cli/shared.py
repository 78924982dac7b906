"""What several commands take and do: options, and opening a base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from inlay_cli import names
from inlay_cli.console import busy

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from inlay.handle import Inlay

Dtype = Literal["float32", "bfloat16", "float16"]

BaseArgument = Annotated[
    str,
    typer.Argument(
        metavar="BASE",
        help="A bundled model (smollm2, minilm, …), a folder, or a name on a model hub.",
        autocompletion=names.model_names,
        show_default=False,
    ),
]
FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A trained inlay.", show_default=False)
]
AnyFileArgument = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="A trained inlay.", show_default=False)
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype",
        help="The base's weights; by default as they are stored, "
        "or float32 on a CPU that only emulates that.",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="Where to run, such as cpu or cuda:1; auto is an accelerator if there is one.",
    ),
]

SkipOption = Annotated[
    bool,
    typer.Option("--skip-bad-rows", help="Leave malformed rows out, and say at the end which."),
]

SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="FIELD=VALUE", help="Any field, by its dotted name."),
]
PrintOption = Annotated[
    bool, typer.Option("--print-recipe", help="Print the whole recipe and do nothing else.")
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Start anew where a run stands in the out folder.")
]


def examples(*lines: tuple[str, str]) -> str:
    """The end of a help page: commands one can copy, each under what it is for."""
    shown = (f"[dim]# {why}[/dim]\n{command.replace('[', chr(92) + '[')}" for command, why in lines)
    return "[bold]Examples[/bold]\n\n" + "\n".join(shown)


def table(title: str | None = None) -> Table:
    """An empty table, as all commands draw them."""
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def silence() -> None:
    """Keep advice and progress bars of transformers out of the commands' own output."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    hub.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def refuse_taken(path: Path, kind: str) -> None:
    """Raise FileError where something is at a path to be written already; kind: what goes there."""
    from inlay.errors import FileError

    if path.exists():
        raise FileError(f"{path} is there already; give a {kind} that does not exist yet")


def open_base(
    base: str, dtype: Dtype | Literal["stored"] | None = None, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A base and its tokenizer, with a sign of life while they load.

    dtype: as for `load_base`. device: "auto" for an accelerator if there is one.

    Raises FetchError.
    """
    with busy(f"loading {base}") as say:
        import torch

        from inlay.hub import load_base

        silence()
        kind = dtype if dtype in (None, "stored") else getattr(torch, dtype)
        here = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        place = here if device == "auto" else device
        return load_base(base, dtype=kind, device=place, report=say)


def open_inlay(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path) -> Inlay:
    """The inlay of a file, attached. Raises FileError, BaseError."""
    from inlay.handle import load

    return load(model, file, tokenizer=tokenizer)
