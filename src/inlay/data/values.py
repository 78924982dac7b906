"""The values of a row: checked, and read out of a text where a table holds a list in a cell."""

from __future__ import annotations

import ast
import json
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from inlay.data.raw import kind_of

Checked = tuple[Any, str | None]
"""A value that may be used, and None; or None, and what is wrong with the value."""


def check_list(value: object) -> Checked:
    """Check a value that may be a list of texts, numbers, lists and objects of these."""
    if not isinstance(value, list | tuple):
        return check_scalar(value)
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
        return check_list(value)
    items: dict[str, Any] = {}
    for name, content in value.items():
        if content is None:
            continue
        items[str(name)], problem = _item(content)
        if problem is not None:
            return None, problem
    return items, None


def check_json(value: object) -> Checked:
    """Check a value that may be any JSON, nulls within it too."""
    if value is None:
        return None, None
    if not isinstance(value, Mapping | list | tuple):
        return check_scalar(value)
    parts: list[Any] = []
    contents: Iterable[Any] = value.values() if isinstance(value, Mapping) else value
    for content in contents:
        part, problem = check_json(content)
        if problem is not None:
            return None, problem
        parts.append(part)
    named = isinstance(value, Mapping)
    return dict(zip(map(str, value), parts, strict=True)) if named else parts, None


def check_scalar(value: object) -> Checked:
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


def written_list(text: str) -> object | None:
    """The list or object that a text holds, written as JSON or by Python; None for another text.

    Programs that write lists into the cells of a table write them so.
    """
    if text[:1] not in ("[", "{"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        content = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    # Two texts without a comma between them, as numpy writes a list, would become one.
    return content if repr(content) == text.strip() else None
