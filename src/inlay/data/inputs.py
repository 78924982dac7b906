"""Rows to predict: read one by one, without gold answers, with the columns they came with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inlay.data.dataset import Value
from inlay.data.fields import Columns, RowParser
from inlay.data.raw import BadRow, RawRows, kind_of, number_rows
from inlay.data.sources import open_source
from inlay.data.template import Template

Complete = Callable[[Mapping[str, Value]], Mapping[str, Value]]
"""Adds fields to a row that can be made of its others."""


@dataclass(frozen=True, slots=True)
class InputRow:
    """One row to predict.

    where: the file and line it comes from.
    columns: its own columns as they are; none where it could not be read.
    fields: what a task reads of it; None where it cannot be used.
    problem: why it cannot be used; None where it can.
    """

    where: str
    columns: Mapping[str, Any]
    fields: Mapping[str, Value] | None
    problem: str | None = None


@dataclass(frozen=True)
class InputParser:
    """Turns the columns of a row into the fields that a task reads.

    inputs: the fields that the task needs.
    targets: fields with gold answers, which are not looked at.
    columns: field -> the column that holds it, in every row.
    usual_columns, usual_templates: field -> the column or the template that gave it in training;
        they count where a row has what they name.
    separator: what separates the items of a list that is written as one text.
    complete: adds fields that can be made of others.
    """

    inputs: Sequence[str]
    targets: Sequence[str]
    columns: Columns
    usual_columns: Columns
    usual_templates: Mapping[str, str]
    separator: str | None
    complete: Complete
    _parsers: dict[tuple[Any, ...], RowParser] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        RowParser(self.columns, None, ())  # checks the names

    def __call__(self, where: str, row: object) -> InputRow:
        """The row with its fields, or with what is wrong with it."""
        if isinstance(row, BadRow):
            return InputRow(where, {}, None, str(row))
        if not isinstance(row, Mapping):
            return InputRow(where, {}, None, f"expected an object of columns, found {kind_of(row)}")
        try:
            return InputRow(where, row, self._fields(row))
        except BadRow as error:
            return InputRow(where, row, None, str(error))

    def _fields(self, row: Mapping[str, Any]) -> Mapping[str, Value]:
        templates = {
            name: template
            for name, template in self.usual_templates.items()
            if self._is_open(name) and set(Template(template).names) <= row.keys()
        }
        columns = {
            name: column
            for name, column in self.usual_columns.items()
            if self._is_open(name) and name not in templates and _names(column) <= row.keys()
        } | dict(self.columns)
        read = {name for column in columns.values() for name in _names(column)}
        read |= {name for template in templates.values() for name in Template(template).names}
        kept = {k: v for k, v in row.items() if k not in self.targets or k in read}
        fields = self.complete(self._parser(columns, templates, ())(kept))
        if not set(self.inputs) <= fields.keys():  # in another form, or not at all
            fields = self.complete(self._parser(columns, templates, self.inputs)(kept))
        return {k: v for k, v in fields.items() if k not in self.targets or k in self.inputs}

    def _is_open(self, name: str) -> bool:
        """Whether a field is read from where it was in training, if the row has that."""
        return name in self.inputs and name not in self.columns

    def _parser(
        self, columns: Columns, templates: Mapping[str, str], need: Sequence[str]
    ) -> RowParser:
        key = (tuple(sorted(columns)), tuple(sorted(templates)), bool(need))
        if key not in self._parsers:
            self._parsers[key] = RowParser(columns, templates, need, self.separator)
        return self._parsers[key]


def _names(column: str | Sequence[str]) -> set[str]:
    """The columns that one field is read from."""
    return {column} if isinstance(column, str) else set(column)


def memory_rows(data: Any) -> RawRows:
    """Rows in memory: mappings, or a data frame of pandas or polars; a null counts as absent."""
    polars = sys.modules.get("polars")  # not imported: then these rows are not from there
    if polars is not None and isinstance(data, polars.DataFrame):
        return number_rows("rows", data.iter_rows(named=True))
    return open_source(data, None)[1]


@dataclass
class Census:
    """What a first pass over rows finds: how many they are, and which columns they have.

    columns: each with the kinds of its values, in the order of their first appearance.
    """

    rows: int = 0
    columns: dict[str, set[str]] = field(default_factory=dict)

    @staticmethod
    def of(rows: RawRows) -> Census:
        """Count rows; none is kept."""
        census = Census()
        for _, row in rows:
            census.rows += 1
            for name, value in row.items() if isinstance(row, Mapping) else ():
                census.columns.setdefault(str(name), set()).add(value_kind(value))
        return census


def value_kind(value: object) -> str:
    """What a value is: "null", "text", "integer", "number", "truth", "texts" or "json"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int):
        return "integer" if abs(value) < 2**63 else "json"
    if isinstance(value, float):
        return "number"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "texts"
    return "json"


def text_lines(lines: Iterable[str], name: str) -> Iterator[tuple[str, str]]:
    """The texts of lines that are not empty, and where each stands."""
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if text.strip():
            yield f"{name}:{number}", text
