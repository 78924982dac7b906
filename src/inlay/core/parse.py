"""Specs as text and JSON: the spelling of a recipe and of a file header."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

from pydantic import TypeAdapter, ValidationError

from inlay.core import own_files
from inlay.core.method import METHODS, Method, Spec, sum_of
from inlay.core.site import Where
from inlay.errors import SpecError, nearest

NAMES = re.compile(r"(?P<quoted>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")|" + own_files.NAME.pattern)
"""A text in quotes, in which nothing is a name, or `file.py:Name`."""


def method_class(name: str) -> type[Method]:
    """The class of a method, by its name. Raises SpecError with the nearest name."""
    if name not in METHODS:
        raise SpecError(f"no method is called {name!r}{nearest(name, METHODS)}")
    return METHODS[name]


def make_method(name: str, fields: Mapping[str, Any]) -> Method:
    """The method `name` with these fields, every type checked (JSON lists count as tuples).

    Raises SpecError for an unknown field or an impossible value.
    """
    kind = method_class(name)
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for field in fields:
        if field not in known:
            raise SpecError(f"{name} has no field {field!r}{nearest(field, known)}")
    values = {key: _decode(key, value) for key, value in fields.items()}
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(step) for step in first["loc"][:1])
        raise SpecError(f"{name}: {field}: {first['msg']}, not {first['input']!r}") from None


def to_json(spec: Spec) -> str:
    """The spec as JSON: a list of `{"method": name, field: value, …}`, defaults included."""
    return json.dumps([_encode(method) for method in spec.methods], sort_keys=True)


def from_json(text: str) -> Spec:
    """The spec that `to_json` wrote. Raises SpecError on anything else."""
    try:
        parts = json.loads(text)
    except ValueError as error:
        raise SpecError(f"the spec is not JSON: {error}") from None
    if not isinstance(parts, list) or not parts:
        raise SpecError("a spec in JSON is a list of methods that is not empty")
    for part in parts:
        if not _is_method(part):
            raise SpecError(f"a method in JSON is an object with a 'method', not {part!r:.80}")
    return sum_of([_decode_method(part) for part in parts])


def parse(text: str, *, run_files: bool = True) -> Spec:
    """The spec written as in Python: `LoRA(rank=8) + Prefix`. Nothing of the text is evaluated.

    A method of one's own is written with its file, `diagonal.py:Diagonal(start=0.5)`; the file is
    run. run_files: False refuses a file that was not run before, for a text that no user wrote.

    Raises SpecError.
    """
    try:
        tree = ast.parse(_without_files(text.strip(), run_files), mode="eval").body
    except (SyntaxError, ValueError):
        raise _unreadable(text) from None
    return sum_of([_read_method(node, text) for node in _summands(tree)])


def origins(spec: Spec) -> dict[str, str]:
    """The methods of a spec that are not inlay's own, and the file or module of each."""
    kinds = {type(method) for method in _all_methods(spec.methods)}
    return {
        kind.__name__: origin
        for kind in sorted(kinds, key=lambda kind: kind.__name__)
        if (origin := own_files.origin_of(kind))
    }


def load_entry_points() -> None:
    """Import the modules that other packages offer under the entry point `inlay.methods`."""
    for point in entry_points(group="inlay.methods"):
        point.load()


def _without_files(text: str, run_files: bool) -> str:
    """The text with the name alone where it has `file.py:Name`; the files are run."""

    def name(match: re.Match[str]) -> str:
        if match["quoted"]:
            return match[0]
        path = match["path"]
        if not run_files:
            own_files.require_run(path, SpecError)
        return own_files.class_in(path, match["name"], Method, SpecError).__name__

    return NAMES.sub(name, text)


def _encode(method: Method) -> dict[str, Any]:
    fields: dict[str, Any] = {"method": type(method).__name__}
    for field in dataclasses.fields(method):  # type: ignore[arg-type]
        value = getattr(method, field.name)
        if isinstance(value, Method):
            value = _encode(value)
        elif isinstance(value, Where):
            value = dataclasses.asdict(value)
        fields[field.name] = value
    return fields


def _all_methods(methods: Iterable[Method]) -> Iterator[Method]:
    """The methods, and those inside them."""
    for method in methods:
        yield method
        values = (getattr(method, field.name) for field in dataclasses.fields(method))  # type: ignore[arg-type]
        yield from _all_methods(value for value in values if isinstance(value, Method))


def _is_method(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("method"), str)


def _decode_method(value: Mapping[str, Any]) -> Method:
    return make_method(value["method"], {k: v for k, v in value.items() if k != "method"})


def _decode(field: str, value: Any) -> Any:
    if field == "at":
        return Where(**value) if isinstance(value, Mapping) else Where.of(value)
    return _decode_method(value) if _is_method(value) else value


def _summands(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from _summands(node.left)
        yield from _summands(node.right)
    else:
        yield node


def _read_method(node: ast.expr, text: str) -> Method:
    if isinstance(node, ast.Name):
        return make_method(node.id, {})
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.args or any(word.arg is None for word in node.keywords):
            raise SpecError(f"{node.func.id}: fields are given by name, as in LoRA(rank=8)")
        fields = {str(word.arg): _read_value(word.value, text) for word in node.keywords}
        return make_method(node.func.id, fields)
    raise _unreadable(text)


def _unreadable(text: str) -> SpecError:
    """The error for a text that is no sum of methods."""
    if ".py" in text:
        return SpecError(
            f"cannot read the method {text!r}; write the name of the method after the file, "
            "without spaces, as in my_method.py:MyMethod(rank=8)"
        )
    return SpecError(f"cannot read the method {text!r}; write LoRA(rank=8) + Prefix()")


def _read_value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _read_where(node, text) if node.func.id == "Where" else _read_method(node, text)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise SpecError(
            f"cannot read {ast.unparse(node)!r} in {text!r}; a value is a number, a text in "
            "quotes, a tuple of these, True, False, None, Where(...) or a method"
        ) from None


def _read_where(node: ast.Call, text: str) -> Where:
    fields = {str(word.arg): _read_value(word.value, text) for word in node.keywords}
    names = [field.name for field in dataclasses.fields(Where)]
    for key in fields:
        if key not in names:
            raise SpecError(f"Where has no field {key!r}{nearest(key, names)}")
    return Where(*[_read_value(arg, text) for arg in node.args], **fields)
