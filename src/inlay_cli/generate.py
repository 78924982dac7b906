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
    RECIPE,
    BaseArgument,
    DeviceOption,
    DtypeOption,
    examples,
    open_base,
    open_inlay,
)

if TYPE_CHECKING:
    from inlay.data.dataset import Example
    from inlay.tasks import Generate


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
            autocompletion=names.inlays,
            show_default=False,
        ),
    ],
    template: Annotated[
        str | None,
        typer.Option(
            help="How the prompt is written, with {source} for the text. By default the text as "
            "it is, or with FILE as training wrote it, by the recipe.yaml next to it: as a "
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

        from inlay.training import predict

    given = {"template": template, "chat": chat, "system": system}
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": beams}
    if temperature is not None:
        options["do_sample"] = temperature > 0
        options["temperature"] = temperature or None
    task = _task(
        file,
        {name: value for name, value in given.items() if value is not None},
        {name: value for name, value in options.items() if value is not None},
    )
    example = _example(task, prompt)
    model, tokenizer = open_base(base, dtype, device)
    with busy("generating"):
        if file is not None:
            open_inlay(model, tokenizer, file)
        task.bind(model, tokenizer)
        torch.manual_seed(seed)
        (answer,) = predict(model, task, [example])
    sys.stdout.write(answer + "\n")


def _task(file: Path | None, given: dict[str, Any], options: dict[str, Any]) -> Generate:
    """The task of the recipe next to a file, if there is one, changed by what is given.

    given: fields of the task. options: of the generation.
    """
    from inlay.tasks import Generate
    from inlay.tasks.generation_config import SAMPLING
    from inlay.training import Recipe

    if file is None:
        default = {} if given.get("chat") else {"template": "{source}"}
        return Generate(**default | given, generation=options)
    recipe = file.parent / RECIPE
    trained = Recipe.load(recipe, run_files=False).make_task() if recipe.is_file() else None
    if not isinstance(trained, Generate):
        return Generate(**given, generation=options)
    if trained.chat == "messages" and (given.get("template") or given.get("chat") is False):
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
            f"the recipe writes a row from {', '.join(names)}, and a prompt is one text; "
            "give --template with {source} for it"
        )
    return Example(dict.fromkeys(names, prompt), "the prompt")
