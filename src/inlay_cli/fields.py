"""The content of `flags.json`: every field of a recipe as an option, read from the classes."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from inlay.data.loading import load
from inlay.tasks import TASKS
from inlay.tasks.options import Option, option_classes
from inlay.training.loop.options import Training
from inlay.training.recipes.recipe import Reading, Recipe, Source
from inlay_cli.flags import Flag


def flags_file() -> str:
    """The text of `flags.json`: the flags of each command that has some."""
    commands = {"train": train_flags(), "eval": eval_flags()}
    plain = {name: [dataclasses.asdict(flag) for flag in of] for name, of in commands.items()}
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def train_flags() -> list[Flag]:
    """Every field of a recipe."""
    short = {name: name.replace("_", "-") for name in Training.model_fields}
    return [
        *(flag for flag in flags_of(Recipe, "", "Recipe", {}) if flag.name != "task"),
        *task_flags(),
        *shared_row_flags(),
        *row_flags("data.train.", {"source": "train"}),
        *_more_rows("dev", "Rows to evaluate on during training, given as for --train."),
        *_more_rows("test", "Rows to evaluate on at the end, given as for --train."),
        *flags_of(Training, "training.", "Training", short),
    ]


def eval_flags() -> list[Flag]:
    """The rows to evaluate on, and the task."""
    rows = row_flags("data.", {"source": "data", "split": "split", "limit": "limit"})
    return [*rows, *task_flags()]


def flags_of(
    model: type[BaseModel], prefix: str, panel: str, aliases: Mapping[str, str], doc: str = ""
) -> list[Flag]:
    """The fields of a pydantic model that are not models themselves.

    aliases: shorter options, by field. doc: explains the fields; the model's docstring by default.
    """
    about = parse_docstring(doc or inspect.getdoc(model) or "")
    return [
        Flag(
            prefix + name,
            value_of(field.annotation),
            _with_default(about.get(name, ""), field.get_default()),
            panel,
            (aliases[name],) if name in aliases else (),
        )
        for name, field in model.model_fields.items()
        if not any(_is_model(part) for part in (field.annotation, *get_args(field.annotation)))
    ]


def row_flags(prefix: str, aliases: Mapping[str, str]) -> list[Flag]:
    """The fields of a source of rows."""
    return flags_of(Source, prefix, "Data", aliases, inspect.getdoc(load) or "")


def shared_row_flags() -> list[Flag]:
    """How the rows of all parts are read."""
    return [
        replace(flag, about=f"For all parts: {flag.about}")
        for flag in flags_of(Reading, "data.", "Data", {}, inspect.getdoc(load) or "")
    ]


def _more_rows(part: str, about: str) -> list[Flag]:
    """The fields of another source of rows, which refer to those of the training rows.

    about: the help text of the source itself.
    """
    return [
        replace(
            flag,
            about=about if field == "source" else f"As --data.train.{field}.",
        )
        for flag in row_flags(f"data.{part}.", {"source": part})
        for field in [flag.name.rpartition(".")[2]]
    ]


def task_flags() -> list[Flag]:
    """The fields of all tasks, as `task.field`.

    A field that means the same in every task is explained once, any other one task by task.
    """
    flags = [Flag("task.kind", "|".join(sorted(TASKS)), "The kind of task.", "Task", ("task",))]
    meanings: dict[str, dict[str, str]] = {}
    values: dict[str, dict[str, None]] = {}
    for kind in sorted(TASKS):
        task = TASKS[kind]
        about: dict[str, str] = {}
        for base in reversed(task.__mro__):
            about |= parse_docstring(inspect.cleandoc(vars(base).get("__doc__") or ""))
        hints = get_type_hints(task)
        for field in dataclasses.fields(task):
            options = option_classes(hints[field.name])
            value = "JSON" if options else value_of(hints[field.name])
            fields = {field.name: (about.get(field.name, ""), value)}
            fields |= {f"{field.name}.{name}": of for name, of in option_fields(options).items()}
            for name, (meaning, words) in fields.items():
                meanings.setdefault(name, {})[kind] = meaning
                values.setdefault(name, {}).update(dict.fromkeys(words.split("|")))
    for name, texts in meanings.items():
        same = len(texts) == len(TASKS) and len(set(texts.values())) == 1
        by_task = " ".join(f"[{kind}] {text}" for kind, text in texts.items())
        text = next(iter(texts.values())) if same else by_task
        flags.append(Flag(f"task.{name}", "|".join(values[name]), text, "Task"))
    return flags


def option_fields(options: Sequence[type[Option]]) -> dict[str, tuple[str, str]]:
    """The fields of a choice: its `kind`, and those of all its classes.

    Returns for each field its explanation and what to write for its value.
    """
    if not options:
        return {}
    kinds = "|".join(option.kind for option in options)
    fields = {"kind": ("The kind; may be left out where the other fields decide.", kinds)}
    for option in options:
        hints = get_type_hints(option)
        about = parse_docstring(inspect.getdoc(option) or "")
        for field in dataclasses.fields(option):
            text = f"({option.kind}) {about.get(field.name, '')}"
            if field.name in fields:
                text = f"{fields[field.name][0]} {text}"
            fields[field.name] = (text, value_of(hints[field.name]))
    return fields


def parse_docstring(doc: str) -> dict[str, str]:
    """What a docstring says of each field: the text after `name:` or `name, other:`.

    An explanation starts at the beginning of a line, or after a full stop on a line that explains
    another field.
    """
    about: dict[str, str] = {}
    for paragraph in re.split(r"\n\s*\n", doc):
        for part in re.split(r"(?:^|(?<=\.) |(?<=\n))\s*(?=(?:\w+, )*\w+: )", paragraph):
            explanation = re.match(r"((?:\w+, )*\w+): (.*)", part, re.DOTALL)
            if explanation is None:
                continue
            names = explanation[1].split(", ")
            text = " ".join(explanation[2].split()).rstrip(".")
            about |= {name: f"{text[:1].upper()}{text[1:]}." for name in names}
    return about


def value_of(annotation: Any) -> str:
    """What to write for a value of a type."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return value_of(get_args(annotation)[0])
    if origin is Literal:
        return "|".join(map(str, get_args(annotation)))
    if origin in (Union, types.UnionType):
        values = [value_of(part) for part in get_args(annotation) if part is not type(None)]
        return "|".join(dict.fromkeys(values))
    plain = {bool: "true|false", int: "INTEGER", float: "NUMBER", str: "TEXT"}
    return plain.get(annotation, "JSON")


def _with_default(about: str, default: Any) -> str:
    if default is None or default is PydanticUndefined or isinstance(default, BaseModel):
        return about
    return f"{about} Default: {default}".strip()


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
