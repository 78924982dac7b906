"""The fields of an example: made from one row, and checked."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Mapping
from typing import Any

from inlay.data.dataset import Value
from inlay.data.raw import BadRow, kind_of
from inlay.data.template import Template
from inlay.errors import DataError, nearest

LIST_FIELDS = (
    "tokens",
    "tags",
    "answers",
    "choices",
    "labels",
    "scores",
    "targets",
    "messages",
)
"""The fields that may hold lists: of texts, numbers, lists and objects of these."""

SCALAR_FIELDS = ("text", "text_pair", "source", "target", "label", "predicate")
"""The fields that hold a text or a number in every task."""

FIELDS = (*SCALAR_FIELDS, "context", "question", *LIST_FIELDS)
"""The field names that tasks read, and so the names that `columns` may map."""


def label_name(value: Value) -> str:
    """A label as text: 1, 1.0 and "1" are one label, and so are true and "true"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


class RowParser:
    """Turns a row into the fields of an example; the arguments are those of `load`.

    Raises DataError for a field name that no task reads, and for a template that cannot be parsed.
    """

    def __init__(
        self,
        columns: Mapping[str, str] | None,
        template: str | Mapping[str, str] | None,
        need: Collection[str],
    ) -> None:
        if isinstance(template, str):
            template = {"text": template, "source": template}
        self.columns = columns or {}
        self.templates = {field: Template(text) for field, text in (template or {}).items()}
        self.need = need
        for field in (*self.columns, *self.templates):
            if field not in FIELDS:
                raise DataError(f"no task reads a field {field!r}{nearest(field, FIELDS)}")
        in_templates = {name for parsed in self.templates.values() for name in parsed.names}
        self.checked = in_templates.union(SCALAR_FIELDS, self.columns.values(), need)
        scalars = {column for field, column in self.columns.items() if field not in LIST_FIELDS}
        self.lists = {self.columns.get(field, field) for field in LIST_FIELDS}
        self.lists -= scalars | in_templates

    def __call__(self, row: object) -> dict[str, Value]:
        """The fields of an example. Raises BadRow."""
        if isinstance(row, BadRow):
            raise row
        if not isinstance(row, Mapping):
            raise BadRow(f"expected an object of columns, found {kind_of(row)}")
        fields: dict[str, Value] = {}
        for column, content in row.items():
            value, problem = _list(content) if column in self.lists else _scalar(content)
            if problem is None:
                assert value is not None
                fields[column] = value
            elif content is not None and (column in self.checked or isinstance(content, str)):
                raise BadRow(f"column {column!r} {problem}")
        added = {field: _get(fields, row, column) for field, column in self.columns.items()}
        fields |= added
        for field, template in self.templates.items():
            added[field] = template.fill({name: _get(fields, row, name) for name in template.names})
        fields |= added
        for field in self.need:
            _get(fields, row, field)
        return fields


def _get(fields: Mapping[str, Value], row: Mapping[Any, Any], name: str) -> Value:
    if name in fields:
        return fields[name]
    if name in row:
        raise BadRow(f"column {name!r} is null")
    raise BadRow(f"there is no column {name!r}{nearest(name, map(str, row))}")


Checked = tuple[Any, str | None]
"""A value that may be used, and None; or None, and what is wrong with the value."""


def _list(value: object) -> Checked:
    """Check a value that may be a list of texts, numbers, lists and objects of these."""
    if not isinstance(value, list | tuple):
        return _scalar(value)
    items: list[Any] = []
    for number, content in enumerate(value, 1):
        item, problem = _item(content)
        if problem is not None:
            return None, f"holds a bad value: item {number} {problem}"
        items.append(item)
    return items, None


def _item(value: object) -> Checked:
    """Check an item of a list: a text, a number, a list, or an object of these."""
    if not isinstance(value, Mapping):
        return _list(value)
    items: dict[str, Any] = {}
    for name, content in value.items():
        if content is None:
            continue
        items[str(name)], problem = _item(content)
        if problem is not None:
            return None, problem
    return items, None


def _scalar(value: object) -> Checked:
    """Check a value that must be a text or a finite number."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return None, "is not valid UTF-8 text"
        return value, None
    if isinstance(value, bool | int):
        return value, None
    if isinstance(value, numbers.Integral):
        return int(value), None
    if isinstance(value, numbers.Real):
        number = float(value)
        return (number, None) if math.isfinite(number) else (None, f"is {number}, not a number")
    return None, f"is {kind_of(value)}, not text or a number"
