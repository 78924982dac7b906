"""Specs as text and JSON: the spelling of a recipe and of a file header."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

from pydantic import TypeAdapter, ValidationError

from inlay.core.method import METHODS, Method, Spec, sum_of
from inlay.core.site import Where
from inlay.errors import SpecError, nearest


def method_class(name: str) -> type[Method]:
    """The class of a method, by its name. Raises SpecError with the nearest name."""
    if name not in METHODS:
        raise SpecError(f"no method is called {name!r}{nearest(name, METHODS)}")
    return METHODS[name]


def make_method(name: str, fields: Mapping[str, Any]) -> Method:
    """The method `name` with these fields, every type checked (JSON lists count as tuples)."""
    kind = method_class(name)
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for field in fields:
        if field not in known:
            raise SpecError(f"{name} has no field {field!r}{nearest(field, known)}")
    fields = {key: _place(value) if key == "at" else value for key, value in fields.items()}
    try:
        return TypeAdapter(kind).validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(step) for step in first["loc"][:1])
        raise SpecError(f"{name}: {at}: {first['msg']}, not {first['input']!r}") from None


def to_json(spec: Spec) -> str:
    """The spec as JSON: a list of `{"method": name, field: value, …}`, defaults included."""
    return json.dumps([_plain(method) for method in spec.methods], sort_keys=True)


def from_json(text: str) -> Spec:
    """The spec that `to_json` wrote. Raises SpecError on anything else."""
    try:
        parts = json.loads(text)
    except ValueError as error:
        raise SpecError(f"the spec is not JSON: {error}") from None
    if not isinstance(parts, list) or not parts:
        raise SpecError("a spec in JSON is a list of methods that is not empty")
    made = []
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("method"), str):
            raise SpecError(f"a method in JSON is an object with a 'method', not {part!r:.80}")
        made.append(make_method(part["method"], {k: v for k, v in part.items() if k != "method"}))
    return sum_of(made)


def parse(text: str) -> Spec:
    """The spec written as in Python: `LoRA(rank=8) + Prefix`. Nothing is evaluated."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise SpecError(f"cannot read the method {text!r}; write LoRA(rank=8) + Prefix()") from None
    return sum_of([_read(node, text) for node in _summands(tree)])


def load_entry_points() -> None:
    """Import the modules that other packages offer under the entry point `inlay.methods`."""
    for point in entry_points(group="inlay.methods"):
        point.load()


def _place(value: Any) -> Any:
    return Where(**value) if isinstance(value, Mapping) else Where.of(value)


def _plain(method: Method) -> dict[str, Any]:
    return {"method": type(method).__name__, **dataclasses.asdict(method)}  # type: ignore[call-overload]


def _summands(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from _summands(node.left)
        yield from _summands(node.right)
    else:
        yield node


def _read(node: ast.expr, text: str) -> Method:
    if isinstance(node, ast.Name):
        return make_method(node.id, {})
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.args or any(word.arg is None for word in node.keywords):
            raise SpecError(f"{node.func.id}: fields are given by name, as in LoRA(rank=8)")
        return make_method(node.func.id, {str(w.arg): _value(w.value, text) for w in node.keywords})
    raise SpecError(f"cannot read the method {text!r}; write LoRA(rank=8) + Prefix()")


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Where":
        fields = {str(word.arg): _value(word.value, text) for word in node.keywords}
        names = [field.name for field in dataclasses.fields(Where)]
        for key in fields:
            if key not in names:
                raise SpecError(f"Where has no field {key!r}{nearest(key, names)}")
        return Where(*[_value(arg, text) for arg in node.args], **fields)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise SpecError(f"cannot read {ast.unparse(node)!r} in {text!r}") from None
