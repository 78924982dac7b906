"""The names of classes in rows that come from Arrow, as `datasets` describes its columns.

A column of classes, or of lists of them, holds numbers; the names are in the features of a data set
in memory, and in the metadata of a Parquet file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from inlay.data.raw import BadRow

Rename = Callable[[Any], Any]

LISTS = ("List", "LargeList", "Sequence")


def arrow_row(features: Mapping[str, Any] | None) -> Callable[[Mapping[str, Any]], object]:
    """A function that turns a row of Arrow values into one as it would be in JSON.

    Class numbers become the names of the classes; -1, which stands for none in a test split, is
    null. The nulls of objects within a column are left out: Arrow fills in fields that only other
    rows have.

    features: of the columns, as `datasets` writes them in JSON; None where there are none.
    """
    renames = {
        name: rename
        for name, feature in (features or {}).items()
        if (rename := _rename(feature)) is not None
    }

    def convert(row: Mapping[str, Any]) -> object:
        try:
            return {
                name: without_nulls(renames[name](value) if name in renames else value)
                for name, value in row.items()
            }
        except BadRow as error:
            return error

    return convert


def without_nulls(value: Any) -> Any:
    """A value without the nulls of the objects in it."""
    if isinstance(value, Mapping):
        return {name: without_nulls(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [without_nulls(part) for part in value]
    return value


def _rename(feature: Any) -> Rename | None:
    """What gives the values of a feature their names; None where it has none."""
    if isinstance(feature, list):  # the older way to write a list
        return _within_list(_rename(feature[0])) if feature else None
    if not isinstance(feature, Mapping):
        return None
    kind = feature.get("_type")
    if kind == "ClassLabel":
        return _class_name(feature.get("names") or ())
    if kind in LISTS:
        return _within_list(_rename(feature["feature"]))
    if isinstance(kind, str):
        return None
    parts = {name: rename for name, part in feature.items() if (rename := _rename(part))}
    return _within_object(parts) if parts else None


def _class_name(names: Any) -> Rename:
    def rename(value: Any) -> Any:
        if value is None or value == -1 or isinstance(value, str):
            return None if value == -1 else value
        if not 0 <= value < len(names):
            raise BadRow(f"a class number without a name: {value}, of {len(names)} classes")
        return names[value]

    return rename


def _within_list(rename: Rename | None) -> Rename | None:
    if rename is None:
        return None
    apply: Rename = rename

    def each(values: Any) -> Any:
        # A sequence of objects is an object of lists.
        return [apply(value) for value in values] if isinstance(values, list) else values

    return each


def _within_object(parts: Mapping[str, Rename]) -> Rename:
    def each(values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {
            name: parts[name](value) if name in parts else value for name, value in values.items()
        }

    return each
