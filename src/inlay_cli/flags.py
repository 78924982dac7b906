"""Options that are fields of a recipe, with the help that the library's own classes give.

They are read from `flags.json`, which `make docs` writes: nobody should wait for torch to see a
page of help or to complete a word.
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

FILE = Path(__file__).with_name("flags.json")


@dataclass(frozen=True)
class Flag:
    """One field as an option.

    name: the field, with dots. takes: what to write behind it. aliases: shorter options.
    """

    name: str
    takes: str
    about: str
    panel: str
    aliases: tuple[str, ...] = ()

    @property
    def option(self) -> Any:
        """The option, as typer wants it."""
        return typer.Option(
            *(f"--{name}" for name in (*self.aliases, self.name)),
            metavar=self.takes,
            help=self.about.replace("[", r"\["),
            rich_help_panel=self.panel,
            show_default=False,
        )


def flags(command: str) -> list[Flag]:
    """The flags of a command."""
    return [Flag(**{**one, "aliases": tuple(one["aliases"])}) for one in _stored()[command]]


@cache
def _stored() -> dict[str, list[dict[str, Any]]]:
    return json.loads(FILE.read_text("utf-8"))


def with_flags(run: Callable[..., None], flags: Sequence[Flag]) -> Callable[..., None]:
    """A function with the parameters of `run` and an option a flag.

    `run` gets the flags that were given as its first argument, name -> text.
    """
    own = list(inspect.signature(run, eval_str=True).parameters.values())[1:]
    names = {f"flag_{number}": flag for number, flag in enumerate(flags)}

    def command(**given: Any) -> None:
        said = {flag.name: given.pop(name) for name, flag in names.items()}
        run({name: text for name, text in said.items() if text is not None}, **given)

    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[str | None, flag.option],
        )
        for name, flag in names.items()
    ]
    command.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*own, *options)}
    command.__doc__ = run.__doc__
    return command


def pairs(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`a.b=c` as (a.b, c). Raises BadParameter for a text without an equals sign."""
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(
                f"--set takes field=value, as in training.lr=1e-4, not {text!r}"
            )
        yield name, value
