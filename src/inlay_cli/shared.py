"""What several commands need: options, examples, and opening a base and an inlay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from inlay_cli import names
from inlay_cli.console import busy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from inlay.files.usage import Usage
    from inlay.handle import Inlay
    from inlay.predicting import Predictor

RECIPE = "recipe.yaml"
"""The recipe that training writes next to an inlay's file."""

INLAY = ".safetensors"
"""How the name of an inlay's file ends."""

Dtype = Literal["float32", "bfloat16", "float16"]

BaseArgument = Annotated[
    str,
    typer.Argument(
        metavar="BASE",
        help="A bundled model (smollm2, minilm, …), a folder, or a name on a model hub.",
        autocompletion=names.bases,
        show_default=False,
    ),
]
FILE_ARGUMENT = typer.Argument(
    metavar="FILE", help="A trained inlay.", autocompletion=names.inlays, show_default=False
)
RECIPE_ARGUMENT = typer.Argument(
    metavar="RECIPE", help="A YAML file.", autocompletion=names.recipes, show_default=False
)
FileArgument = Annotated[Path, FILE_ARGUMENT]
OptionalFileArgument = Annotated[Path | None, FILE_ARGUMENT]
RecipeArgument = Annotated[Path, RECIPE_ARGUMENT]
OptionalRecipeArgument = Annotated[Path | None, RECIPE_ARGUMENT]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="The base, where it is not where it was in training.",
        autocompletion=names.bases,
        show_default=False,
    ),
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
Quantize = Literal["int8", "nf4", "torchao-int8", "torchao-int4"]

QuantizeOption = Annotated[
    Quantize | None,
    typer.Option(
        "--quantize",
        help="Keep the base's matrices in 8 or 4 bits. By default as in the inlay's training.",
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
DropOption = Annotated[
    int,
    typer.Option(
        "--drop-layers",
        min=0,
        metavar="K",
        help="Leave the pieces of the K lowest layers out (AdapterDrop); nothing is trained anew.",
        show_default=False,
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
    base: str,
    dtype: Dtype | Literal["stored"] | None = None,
    device: str = "cpu",
    quantize: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base and its tokenizer, and show progress.

    dtype: as for `load_base`.
    device: a torch device, or "auto" for an accelerator if there is one.
    quantize: as for `load_base`.

    Raises FetchError.
    """
    with busy(f"loading {base}") as show:
        import torch

        from inlay.hub import load_base

        silence()
        torch_dtype = dtype if dtype in (None, "stored") else getattr(torch, dtype)
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        torch_device = (accelerator or "cpu") if device == "auto" else device
        return load_base(
            base, dtype=torch_dtype, device=torch_device, quantize=quantize, report=show
        )


def open_inlay(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path) -> Inlay:
    """Attach the inlay of a file. Raises FileError, BaseError."""
    from inlay.handle import load

    return load(model, file, tokenizer=tokenizer)


@dataclass(frozen=True)
class Opened:
    """A base, and an inlay opened from its file or None.

    usage: what is known of its use, or None.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    handle: Inlay | None
    usage: Usage | None


def open_model(
    file: Path,
    base: str | None = None,
    dtype: Dtype | Literal["stored"] | None = None,
    device: str = "cpu",
    quantize: str | None = None,
    drop_layers: int = 0,
) -> Opened:
    """Load the base of a file, or another one, and attach its inlay.

    quantize: by default as in training. drop_layers: how many of the lowest layers the inlay
    leaves out.

    Raises FileError where neither the file nor the caller names a base; BaseError, FetchError, and
    SpecError where layers cannot be left out.
    """
    usage = usage_of(file, base)
    place = usage.base_path(file) if base is None and usage is not None else base
    assert place is not None
    quantize = quantize or (None if usage is None else usage.quantize)
    model, tokenizer = open_base(place, dtype, device, quantize)
    return attach_file(model, tokenizer, file, usage, drop_layers)


def usage_of(file: Path, base: str | None) -> Usage | None:
    """What is known of a file's use, by itself or by the recipe next to it; None for nothing.

    base: given by the user. Raises FileError where nothing is known, and no base is given either.
    """
    with busy(f"reading {file}"):
        from inlay.errors import FileError
        from inlay.predicting import read_usage

        try:
            return read_usage(file)
        except FileError:
            if base is None or not file.exists():
                raise
            return None


def attach_file(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    file: Path,
    usage: Usage | None,
    drop_layers: int = 0,
) -> Opened:
    """Attach the inlay of a file to its base, without its lowest layers.

    Raises FileError, BaseError, and SpecError where layers cannot be left out.
    """
    from inlay.dropping import in_place_of

    if usage is not None and usage.chat_template is not None:
        tokenizer.chat_template = usage.chat_template
    handle = in_place_of(open_inlay(model, tokenizer, file), drop_layers)
    return Opened(model, tokenizer, handle, usage)


def base_and_files(words: Sequence[str]) -> tuple[str | None, list[Path]]:
    """`[BASE] FILE …` as both; a first word that ends in .safetensors is a FILE."""
    if words and not words[0].endswith(INLAY):
        return words[0], [Path(word) for word in words[1:]]
    return None, [Path(word) for word in words]


def open_predictor(
    file: Path,
    base: str | None = None,
    dtype: Dtype | Literal["stored"] | None = None,
    device: str = "auto",
    quantize: str | None = None,
    drop_layers: int = 0,
) -> Predictor:
    """Open a trained inlay with its base and task, and show progress.

    drop_layers: how many of the lowest layers the inlay leaves out.

    Raises FileError, BaseError, FetchError, and SpecError where layers cannot be left out.
    """
    with busy(f"opening {file}") as show:
        import torch

        from inlay.predicting import open_inlay as open_file

        silence()
        torch_dtype = dtype if dtype in (None, "stored") else getattr(torch, dtype)
        return open_file(
            file,
            base=base,
            dtype=torch_dtype,
            device=device,
            quantize=quantize,
            drop_layers=drop_layers,
            report=show,
        )
