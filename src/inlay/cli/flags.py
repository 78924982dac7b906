"""Flags made from models: every field of a recipe as an option, with the help its class gives."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from typer.core import TyperCommand


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


class Grown(TyperCommand):
    """A command that gets its options when somebody asks for them, so that listing it is quick.

    Its function takes no arguments and returns the function that is really run.
    """

    grown = False

    def get_params(self, ctx: Any) -> list:
        """The parameters of the function that is really run."""
        if not self.grown:
            self.grown = True
            assert self.callback is not None
            seed = typer.Typer(add_completion=False)
            seed.command()(self.callback())
            made = typer.main.get_command(seed)
            self.params, self.callback = made.params, made.callback
        return super().get_params(ctx)


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


def flags_of(
    model: type[BaseModel], prefix: str, panel: str, aliases: Mapping[str, str], doc: str = ""
) -> list[Flag]:
    """The plain fields of a pydantic model; those that are models themselves are left to others.

    aliases: shorter options, by field. doc: where the fields are explained, if not in the model's
    own docstring.
    """
    about = fields_of(doc or inspect.getdoc(model) or "")
    return [
        Flag(
            prefix + name,
            takes(field.annotation),
            _with_default(about.get(name, ""), field.get_default()),
            panel,
            (aliases[name],) if name in aliases else (),
        )
        for name, field in model.model_fields.items()
        if not any(_is_model(kind) for kind in (field.annotation, *get_args(field.annotation)))
    ]


def row_flags(prefix: str, aliases: Mapping[str, str], explained: bool = True) -> list[Flag]:
    """The fields of a source of rows."""
    from inlay.data import load
    from inlay.training.recipe import Source

    doc = (inspect.getdoc(load) or "") if explained else " "
    return flags_of(Source, prefix, "data", aliases, doc)


def task_flags() -> list[Flag]:
    """The fields of every task, as `task.field`."""
    from inlay.tasks import TASKS

    made = [Flag("task.kind", "|".join(sorted(TASKS)), "What is taught.", "task", ("task",))]
    found: dict[str, dict[str, Any]] = {}
    for kind in sorted(TASKS):
        task = TASKS[kind]
        about: dict[str, str] = {}
        for base in reversed(task.__mro__):
            about |= fields_of(inspect.cleandoc(vars(base).get("__doc__") or ""))
        hints = get_type_hints(task)
        for field in dataclasses.fields(task):
            found.setdefault(field.name, {})[kind] = (about.get(field.name, ""), hints[field.name])
    for name, kinds in found.items():
        texts = {kind: text for kind, (text, _) in kinds.items()}
        same = len(kinds) == len(TASKS) and len(set(texts.values())) == 1
        about_all = " ".join(f"[{kind}] {text}" for kind, text in texts.items())
        shown = next(iter(texts.values())) if same else about_all
        types_ = dict.fromkeys(takes(hint) for _, hint in kinds.values())
        made.append(Flag(f"task.{name}", "|".join(types_), shown, "task"))
    return made


def fields_of(doc: str) -> dict[str, str]:
    """What a docstring says of each field: the text behind `name:` or `name, other:`.

    A field is explained at the beginning of a line, or behind a full stop on a line that
    explains another.
    """
    found: dict[str, str] = {}
    for paragraph in re.split(r"\n\s*\n", doc):
        for part in re.split(r"(?:^|(?<=\.) |(?<=\n))\s*(?=(?:\w+, )*\w+: )", paragraph):
            said = re.match(r"((?:\w+, )*\w+): (.*)", part, re.DOTALL)
            if said is None:
                continue
            names = said[1].split(", ")
            text = " ".join(said[2].split()).rstrip(".")
            found |= {name: f"{text[:1].upper()}{text[1:]}." for name in names}
    return found


def takes(annotation: Any) -> str:
    """What to write for a value of this type."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return takes(get_args(annotation)[0])
    if origin is Literal:
        return "|".join(map(str, get_args(annotation)))
    if origin in (Union, types.UnionType):
        kinds = [takes(kind) for kind in get_args(annotation) if kind is not type(None)]
        return "|".join(dict.fromkeys(kinds))
    plain = {bool: "true|false", int: "INTEGER", float: "NUMBER", str: "TEXT"}
    return plain.get(annotation, "JSON")


def _with_default(about: str, default: Any) -> str:
    if default is None or repr(default) == "PydanticUndefined" or isinstance(default, BaseModel):
        return about
    return f"{about} Default: {default}".strip()


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def pairs(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`a.b=c` as (a.b, c). Raises BadParameter for a text without an equals sign."""
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(
                f"--set takes field=value, as in training.lr=1e-4, not {text!r}"
            )
        yield name, value
