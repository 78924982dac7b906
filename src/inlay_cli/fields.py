"""What `flags.json` says: every field of a recipe as an option, read from the library's classes."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from inlay.data.loading import load
from inlay.tasks import TASKS
from inlay.training.loop.options import Training
from inlay.training.recipes.recipe import Recipe, Source
from inlay_cli.flags import Flag


def stored() -> str:
    """The text of `flags.json`: the flags of each command that has some."""
    commands = {"train": train_flags(), "eval": eval_flags()}
    plain = {name: [dataclasses.asdict(one) for one in made] for name, made in commands.items()}
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def train_flags() -> list[Flag]:
    """Every field of a recipe."""
    short = {name: name.replace("_", "-") for name in Training.model_fields}
    return [
        *(flag for flag in flags_of(Recipe, "", "recipe", {}) if flag.name != "task"),
        *task_flags(),
        *row_flags("data.train.", {"source": "train"}),
        *row_flags("data.dev.", {"source": "dev"}, explained=False),
        *row_flags("data.test.", {"source": "test"}, explained=False),
        *flags_of(Training, "training.", "training", short),
    ]


def eval_flags() -> list[Flag]:
    """The rows to measure on, and the task."""
    rows = row_flags("data.", {"source": "data", "split": "split", "limit": "limit"})
    return [*rows, *task_flags()]


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
    doc = (inspect.getdoc(load) or "") if explained else " "
    return flags_of(Source, prefix, "data", aliases, doc)


def task_flags() -> list[Flag]:
    """The fields of every task, as `task.field`."""
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
