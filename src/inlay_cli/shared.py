"""What several commands need: options, examples, and opening a base and an inlay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from inlay_cli import names
from inlay_cli.console import busy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from inlay.handle import Inlay

RECIPE = "recipe.yaml"
"""The recipe that training writes next to an inlay's file."""

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
OptionalFileArgument = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="A trained inlay.", show_default=False)
]
RecipeArgument = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A YAML file.", show_default=False)
]
OptionalRecipeArgument = Annotated[
    Path | None, typer.Argument(metavar="RECIPE", help="A YAML file.", show_default=False)
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype",
        help="The type of the base's weights. By default as stored, or float32 on a CPU that "
        "only emulates the stored type.",
        show_default=False,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device", help="Where to run: cpu, cuda:1, …; auto uses an accelerator if there is one."
    ),
]
SkipOption = Annotated[
    bool,
    typer.Option(
        "--skip-bad-rows",
        help="Leave bad rows out, whoever notices them, and list them at the end.",
    ),
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Any field of the recipe; may be given several times."
    ),
]
PrintOption = Annotated[
    bool, typer.Option("--print-recipe", help="Print the recipe with all its fields, and stop.")
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Start again instead of resuming the run in the out folder.")
]


def examples(*lines: tuple[str, str]) -> str:
    """The end of a help page: commands to copy, each below its purpose."""
    texts = (f"[dim]# {why}[/dim]\n{command.replace('[', chr(92) + '[')}" for command, why in lines)
    return "[bold]Examples[/bold]\n\n" + "\n".join(texts)


def silence() -> None:
    """Keep advice and progress bars of transformers out of the commands' output."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def refuse_existing(path: Path, kind: str) -> None:
    """Raise FileError if a path to be written exists already. kind: "file" or "folder"."""
    from inlay.errors import FileError

    if path.exists():
        raise FileError(f"{path} exists already; give a {kind} that does not exist yet")


def open_base(
    base: str, dtype: Dtype | Literal["stored"] | None = None, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base and its tokenizer, and show progress.

    dtype: as for `load_base`.
    device: a torch device, or "auto" for an accelerator if there is one.

    Raises FetchError.
    """
    with busy(f"loading {base}") as show:
        import torch

        from inlay.hub import load_base

        silence()
        torch_dtype = dtype if dtype in (None, "stored") else getattr(torch, dtype)
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        torch_device = (accelerator or "cpu") if device == "auto" else device
        return load_base(base, dtype=torch_dtype, device=torch_device, report=show)


def open_inlay(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path) -> Inlay:
    """Attach the inlay of a file. Raises FileError, BaseError."""
    from inlay.handle import load

    return load(model, file, tokenizer=tokenizer)
