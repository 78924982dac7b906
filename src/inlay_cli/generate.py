"""inlay generate: continue a prompt with a base, with or without an inlay."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from inlay_cli.console import busy
from inlay_cli.shared import (
    BaseArgument,
    DeviceOption,
    DtypeOption,
    examples,
    open_base,
    open_inlay,
)


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        rich_help_panel=panel,
        epilog=examples(
            ('inlay generate smollm2 "What is an inlay?" --chat', "the base alone"),
            ('inlay generate smollm2 runs/e2e/default.safetensors "name: Aromi"', "with an inlay"),
            ("cat letter.txt | inlay generate smollm2 legal.safetensors -", "text from a pipe"),
        ),
    )(generate)


def generate(
    base: BaseArgument,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[FILE] PROMPT",
            help="A trained inlay (optional), and the text; - reads the text from a pipe.",
            show_default=False,
        ),
    ],
    template: Annotated[
        str | None,
        typer.Option(
            help="How the prompt is written, with {source} for the text. By default the text as "
            "it is, or with FILE as training wrote it: {source}, and a line break in a decoder.",
            show_default=False,
        ),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Send the prompt as a message, in the model's chat format."),
    ] = False,
    system: Annotated[
        str | None,
        typer.Option(help="A system message before the prompt; needs --chat.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the longest answer.")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0, help="Above 0, tokens are sampled; 0 takes the most probable.")
    ] = 0.0,
    beams: Annotated[int, typer.Option(min=1, help="Beams of the search.")] = 1,
    seed: Annotated[int, typer.Option(help="The seed of the sampling.")] = 0,
    dtype: DtypeOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Continue a prompt, with or without an inlay."""
    if len(words) > 2:
        raise typer.BadParameter("give at most a FILE and one PROMPT; put the prompt in quotes")
    if len(words) == 1 and words[0].endswith(".safetensors"):
        raise typer.BadParameter(f"{words[0]} is a FILE; give a PROMPT after it")
    file = Path(words[0]) if len(words) == 2 else None
    prompt = sys.stdin.read() if words[-1] == "-" else words[-1]
    with busy("starting"):
        import torch

        from inlay.data.dataset import Example
        from inlay.tasks import Generate
        from inlay.training import predict

    if template is None and file is None and not chat:
        template = "{source}"
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": beams}
    if temperature > 0:
        options |= {"do_sample": True, "temperature": temperature}
    task = Generate(template=template, chat=chat, system=system, generation=options)
    model, tokenizer = open_base(base, dtype, device)
    with busy("generating"):
        if file is not None:
            open_inlay(model, tokenizer, file)
        task.bind(model, tokenizer)
        torch.manual_seed(seed)
        (answer,) = predict(model, task, [Example({"source": prompt}, "the prompt")])
    sys.stdout.write(answer + "\n")
