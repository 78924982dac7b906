"""inlay generate: continue a prompt with a base, with or without an inlay."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay_cli import names
from inlay_cli.console import busy
from inlay_cli.shared import (
    INLAY,
    DeviceOption,
    DropOption,
    DtypeOption,
    QuantizeOption,
    base_and_files,
    examples,
    open_base,
    open_model,
    usage_of,
)

if TYPE_CHECKING:
    from inlay.data.dataset import Example
    from inlay.files.usage import Usage
    from inlay.tasks import Generate


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        rich_help_panel=panel,
        epilog=examples(
            ('inlay generate smollm2 "What is an inlay?" --chat', "the base alone"),
            ('inlay generate runs/e2e/default.safetensors "name: Aromi"', "with an inlay"),
            ("cat letter.txt | inlay generate legal.safetensors -", "text from a pipe"),
        ),
    )(generate)


def generate(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[BASE] [FILE] PROMPT",
            help="A base or a trained inlay, which knows its base, or both; and the text. - reads "
            "the text from a pipe.",
            autocompletion=names.bases_or_inlays,
            show_default=False,
        ),
    ],
    template: Annotated[
        str | None,
        typer.Option(
            help="How the prompt is written, with {source} for the text. By default the text as "
            "it is, or with FILE as training wrote it: as a "
            "message where that has chat, else {source} and a line break in a decoder.",
            show_default=False,
        ),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Send the prompt as a message, in the model's chat format. By default as "
            "training did.",
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(help="A system message before the prompt; needs --chat.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens of the longest answer; 64 by default.", show_default=False
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Above 0, tokens are sampled; 0, the default, takes the most probable.",
            show_default=False,
        ),
    ] = None,
    beams: Annotated[
        int | None,
        typer.Option(min=1, help="Beams of the search; 1 by default.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of the sampling.")] = 0,
    drop_layers: DropOption = 0,
    dtype: DtypeOption = None,
    device: DeviceOption = "auto",
    quantize: QuantizeOption = None,
) -> None:
    """Continue a prompt, with or without an inlay."""
    base, file = _places(words)
    if drop_layers and file is None:
        raise typer.BadParameter("--drop-layers leaves layers of an inlay out; give its FILE")
    prompt = sys.stdin.read() if words[-1] == "-" else words[-1]
    with busy("starting"):
        import torch

        from inlay.training import predict

    given = {"template": template, "chat": chat, "system": system}
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": beams}
    if temperature is not None:
        options["do_sample"] = temperature > 0
        options["temperature"] = temperature or None
    usage = None if file is None else usage_of(file, base)
    task = _task(
        file,
        usage,
        {name: value for name, value in given.items() if value is not None},
        {name: value for name, value in options.items() if value is not None},
    )
    example = _example(task, prompt)
    if file is None:
        assert base is not None
        model, tokenizer = open_base(base, dtype, device, quantize)
    else:
        opened = open_model(file, base, dtype, device, quantize, drop_layers)
        model, tokenizer = opened.model, opened.tokenizer
    with busy("generating"):
        task.bind(model, tokenizer)
        torch.manual_seed(seed)
        (answer,) = predict(model, task, [example])
    sys.stdout.write(answer + "\n")


def _places(words: list[str]) -> tuple[str | None, Path | None]:
    """The base and the file of `[BASE] [FILE] PROMPT`."""
    if len(words) > 3:
        raise typer.BadParameter("give at most a FILE and one PROMPT; put the prompt in quotes")
    base, files = base_and_files(words[:-1])
    if words[-1].endswith(INLAY):
        raise typer.BadParameter(f"{words[-1]} is a FILE; give a PROMPT after it")
    if len(files) > 1:
        raise typer.BadParameter("give one FILE and one PROMPT; put the prompt in quotes")
    if base is None and not files:
        raise typer.BadParameter("give a BASE or a FILE, and a PROMPT after it")
    return base, files[0] if files else None


def _task(
    file: Path | None, usage: Usage | None, given: dict[str, Any], options: dict[str, Any]
) -> Generate:
    """The task of a file, changed by what is given.

    given: fields of the task. options: of the generation.
    """
    from inlay.predicting import task_of
    from inlay.tasks import Generate
    from inlay.tasks.generation_config import SAMPLING

    if file is None:
        default = {} if given.get("chat") else {"template": "{source}"}
        return Generate(**default | given, generation=options)
    trained = None if usage is None else task_of(usage)
    if not isinstance(trained, Generate):
        return Generate(**given, generation=options)
    if given.get("chat") is False or (trained.chat == "messages" and given.get("template")):
        given = {"chat": False, "system": None, **given}
    kept = dict(trained.generation)
    if options.get("do_sample") is False:
        kept = {name: value for name, value in kept.items() if name not in SAMPLING}
    return replace(trained, **given, generation={**kept, **options})


def _example(task: Generate, prompt: str) -> Example:
    """The prompt as a row of the task. Raises BadParameter where the task needs several fields."""
    from inlay.data.dataset import Example
    from inlay.data.template import Template

    if task.chat == "messages":
        return Example({"messages": [{"role": "user", "content": prompt}]}, "the prompt")
    names = Template(task.template or "{source}").names
    if len(names) > 1:
        raise typer.BadParameter(
            f"the task writes a row from {', '.join(names)}, and a prompt is one text; "
            "give --template with {source} for it"
        )
    return Example(dict.fromkeys(names, prompt), "the prompt")
