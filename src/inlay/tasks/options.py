"""Options: fields of a task that are a choice between small objects, and their form as JSON.

A choice is written as a mapping, `{kind: verbalizer, words: {…}}`. `kind` may be left out where
the other fields decide: the first class that has all of them is meant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from inlay.core.arguments import check_arguments
from inlay.errors import TaskError, nearest, together


@dataclass(frozen=True)
class Option:
    """One of several classes that a field of a task may hold. Its fields are checked.

    kind: its name in a recipe.
    """

    kind: ClassVar[str]

    def __new__(cls, *positional: Any, **named: Any) -> Self:
        """Refuse an unknown field with the name of the nearest one."""
        check_arguments(cls, positional, named, TaskError)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_fields(self, self.kind)

    def normalise(self, name: str, value: Any) -> None:
        """Replace a field by an equal value in its usual form, before it is checked."""
        object.__setattr__(self, name, value)


class ImpossibleValue(TaskError):
    """A field whose value its type does not have."""


def check_fields(owner: Any, name: str) -> None:
    """Check every field of a dataclass against its annotation.

    name: of the owner, for the message.

    Raises ImpossibleValue, a TaskError, that names all values that do not fit.
    """
    kind: Any = type(owner)
    faults = []
    for field, (adapter, options) in _checks(kind).items():
        value = getattr(owner, field)
        if isinstance(value, options):
            continue  # it has checked its own fields
        if options:
            classes = " or ".join(option.__name__ for option in options)
            faults.append(f"{name}: {field} must be {classes}, not {value!r}")
            continue
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            faults.append(f"{name}: {field}={value!r} is impossible: {reason}")
    if faults:
        raise ImpossibleValue(together(faults, name))


@cache
def _checks(owner: type) -> dict[str, tuple[TypeAdapter, tuple[type[Option], ...]]]:
    """What checks each field: the type it has, or the classes that it is a choice of."""
    hints = get_type_hints(owner, include_extras=True)
    config = ConfigDict(arbitrary_types_allowed=True)
    checks = {}
    for field in dataclasses.fields(owner):
        hint = hints[field.name]
        options = option_classes(hint)
        checks[field.name] = (TypeAdapter(Any if options else hint, config=config), options)
    return checks


def option_classes(annotation: Any) -> tuple[type[Option], ...]:
    """The classes of a field that is a choice, the default one first; () for any other field."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    options = all(isinstance(kind, type) and issubclass(kind, Option) for kind in kinds)
    return tuple(kinds) if options else ()


def plain(value: Any) -> Any:
    """The value of a field as JSON."""
    if isinstance(value, Option):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"kind": value.kind, **{name: plain(part) for name, part in fields.items()}}
    return list(value) if isinstance(value, tuple) else value


def option_from(value: Any, classes: Sequence[type[Option]], field: str) -> Any:
    """The option that a recipe describes; a value that is no mapping is returned as it is.

    Args:
        value: its `kind` and fields.
        classes: what the field may hold.
        field: the name of the field, for messages.

    Raises TaskError for an unknown kind or field, a missing field or an impossible value.
    """
    if not isinstance(value, Mapping):
        return value
    fields = dict(value)
    kinds = {option.kind: option for option in classes}
    kind = fields.pop("kind", None)
    if kind is None:
        names = {option: _names(option) for option in classes}
        fitting = [option for option in classes if names[option] >= fields.keys()]
        for name in fields if not fitting else ():
            known = set().union(*names.values())
            if name not in known:
                raise TaskError(f"{field} has no field {name!r}{nearest(name, known)}")
        if not fitting:
            raise TaskError(f"{field}: {', '.join(fields)} do not go together; give its kind")
        option = fitting[0]
    elif kind in kinds:
        option = kinds[kind]
    else:
        raise TaskError(f"{field} has no kind {kind!r}{nearest(str(kind), kinds)}")
    for name in fields:
        if name not in _names(option):
            known_here = nearest(name, _names(option))
            raise TaskError(f"{field} {option.kind!r} has no field {name!r}{known_here}")
    for part in dataclasses.fields(option):
        required = part.default is dataclasses.MISSING
        if required and part.default_factory is dataclasses.MISSING and part.name not in fields:
            raise TaskError(f"{field} {option.kind!r} needs {part.name}")
    return option(**fields)


def _names(option: type[Option]) -> set[str]:
    return {field.name for field in dataclasses.fields(option)}
