"""YAML of recipes: `1e-4` is a number, `no` is a word, and a key may not be repeated.

PyYAML reads YAML 1.1, where `1e-4` is a text and `{yes: …, no: …}` has the keys True and False.
Here numbers and booleans are read by the core schema of YAML 1.2.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from inlay.errors import RecipeError

BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
INT = re.compile(r"[-+]?[0-9]+")
FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", re.IGNORECASE
)


class Loader(yaml.SafeLoader):
    """Reads plain data."""


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads back, with lists on one line."""


for kind in (Loader, Dumper):
    kind.yaml_implicit_resolvers = {}
    for tag, form, first in (
        ("bool", BOOL, "tTfF"),
        ("int", INT, "-+0123456789"),
        ("float", FLOAT, "-+0123456789."),
        ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ):
        exact = re.compile(f"(?:{form.pattern})$", form.flags)
        kind.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", exact, list(first))


def _int(loader: Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _float(loader: Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    for key, value in node.value:
        name = loader.construct_object(key, deep=True)
        if not isinstance(name, str | int | float):
            raise yaml.constructor.ConstructorError(None, None, "a key is a word", key.start_mark)
        if name in mapping:
            problem = f"{name!r} is given twice"
            raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        mapping[name] = loader.construct_object(value, deep=True)
    return mapping


def _list(dumper: Dumper, values: list) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


Loader.add_constructor("tag:yaml.org,2002:int", _int)
Loader.add_constructor("tag:yaml.org,2002:float", _float)
Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
Dumper.add_representer(list, _list)


def read_file(path: str | Path, what: str) -> Any:
    """The plain data of a file. what: it is, as in "the recipe".

    Raises RecipeError where the file cannot be read, or is not YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"cannot read {what} {path}: {error.strerror}; check its path") from None
    except UnicodeDecodeError:
        raise RecipeError(
            f"cannot read {what} {path}: it is not UTF-8 text; save it as UTF-8"
        ) from None
    return read(text, str(path))


def read(text: str, name: str) -> Any:
    """Parse a YAML text; name: of its file. Raises RecipeError, with the line."""
    try:
        return yaml.load(text, Loader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise RecipeError(f"{name}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{name}: not valid YAML: {error!s:.100}") from None


def write(data: Any) -> str:
    """Data as YAML, with its keys in their order."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)
