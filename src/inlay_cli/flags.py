"""Options that are fields of a recipe.

Their names and help texts come from the library's classes. They are read from `flags.json`, which
`make docs` writes: neither help nor tab completion should wait for torch.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from inlay_cli import names

COMPLETIONS = {"base": names.bases, "method": names.methods}
"""What completes the values of a field."""

FILE = Path(__file__).with_name("flags.json")


@dataclass(frozen=True)
class Flag:
    """One field as an option.

    name: the field, with dots. value: what to write after it. about: the help text. panel: the
    heading of the help page. aliases: shorter options.
    """

    name: str
    value: str
    about: str
    panel: str
    aliases: tuple[str, ...] = ()

    @property
    def option(self) -> Any:
        """The option for typer."""
        return typer.Option(
            *(f"--{name}" for name in (*self.aliases, self.name)),
            metavar=self.value,
            help=self.about.replace("[", r"\["),
            rich_help_panel=self.panel,
            autocompletion=self.completion,
            show_default=False,
        )

    @property
    def completion(self) -> Callable[[str], list[str]] | None:
        """What completes a value in a shell; None leaves it to the shell."""
        words = [word for word in self.value.split("|") if not word.isupper()]

        def complete(incomplete: str) -> list[str]:
            return names.tasks(incomplete, words) if self.name == "task.kind" else words

        if self.name.endswith(".source"):
            return names.data
        return COMPLETIONS.get(self.name, complete if words else None)


def flags(command: str) -> list[Flag]:
    """The flags of a command."""
    return [Flag(**{**entry, "aliases": tuple(entry["aliases"])}) for entry in _stored()[command]]


@cache
def _stored() -> dict[str, list[dict[str, Any]]]:
    return json.loads(FILE.read_text("utf-8"))


def with_flags(run: Callable[..., None], flags: Sequence[Flag]) -> Callable[..., None]:
    """A command with the parameters of `run`, and an option for each flag.

    run: its first argument receives the flags of a command line, field -> text.
    """
    parameters = list(inspect.signature(run, eval_str=True).parameters.values())[1:]
    names = {f"flag_{number}": flag for number, flag in enumerate(flags)}

    def command(**values: Any) -> None:
        texts = {flag.name: values.pop(name) for name, flag in names.items()}
        run({name: text for name, text in texts.items() if text is not None}, **values)

    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[str | None, flag.option],
        )
        for name, flag in names.items()
    ]
    command.__signature__ = inspect.Signature([*parameters, *options])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*parameters, *options)}
    command.__doc__ = run.__doc__
    return command


def assignments(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`a.b=c` as (a.b, c). Raises BadParameter for a text without a name or an equals sign."""
    return pairs(texts, "--set", "training.lr=1e-4")


def pairs(texts: Sequence[str], option: str, example: str) -> Iterator[tuple[str, str]]:
    """`a=b` as (a, b). option, example: for the message. Raises BadParameter as `assignments`."""
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{option} takes FIELD=VALUE, such as {example}, not {text!r}")
        yield name, value
