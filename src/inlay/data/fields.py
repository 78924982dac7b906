"""The fields of an example: made from one row, and checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from inlay.data.dataset import Value
from inlay.data.forms import derived, hint, is_flag, is_set
from inlay.data.raw import BadRow, kind_of
from inlay.data.squad import answers_as_list
from inlay.data.template import Template
from inlay.data.values import Checked, check_json, check_list, check_scalar, written_list
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
    "tools",
)
"""The fields that may hold lists: of texts, numbers, lists and objects of these."""

SEPARABLE = ("tokens", "tags", "choices", "labels", "targets")
"""Those that `separator` splits where they are one text."""

GATHERED = ("choices", "labels", "targets")
"""Those that `columns` may make of several columns."""

JSON_FIELDS = ("messages", "tools")
"""Those whose objects are kept as they are, nulls too: a chat template reads them."""

SCALAR_FIELDS = ("text", "text_pair", "source", "target", "label", "predicate")
"""The fields that hold a text or a number in every task."""

FIELDS = (*SCALAR_FIELDS, "context", "question", *LIST_FIELDS)
"""The field names that tasks read, and so the names that `columns` may map."""

Columns = Mapping[str, str | Sequence[str]]
"""A field -> the column that holds it, or the columns that it is gathered from."""


class RowParser:
    """Turns a row into the fields of an example; the arguments are those of `load`.

    derive: fields that are read in other forms too, as those in `need` are, but may be missing.

    Raises DataError for a field name that no task reads, for several columns of a field that takes
    one, and for a template that cannot be parsed.
    """

    def __init__(
        self,
        columns: Columns | None,
        template: str | Mapping[str, str] | None,
        need: Collection[str],
        separator: str | None = None,
        derive: Collection[str] = (),
    ) -> None:
        if isinstance(template, str):
            template = {"text": template, "source": template}
        self.templates = {field: Template(text) for field, text in (template or {}).items()}
        self.need = need
        self.derived = dict.fromkeys((*need, *derive))
        self.separator = separator
        if separator == "":
            raise DataError("separator='' separates nothing; write a character such as '|'")
        for field in (*(columns or {}), *self.templates):
            if field not in FIELDS:
                raise DataError(f"no task reads a field {field!r}{nearest(field, FIELDS)}")
        self.columns = {f: c for f, c in (columns or {}).items() if isinstance(c, str)}
        self.gathered = {f: c for f, c in (columns or {}).items() if not isinstance(c, str)}
        for field in self.gathered:
            if field not in GATHERED:
                raise DataError(
                    f"the field {field!r} takes one column; several are for {', '.join(GATHERED)}"
                )
        in_templates = {name for parsed in self.templates.values() for name in parsed.names}
        own = {*SCALAR_FIELDS, *need} - {*self.columns, *self.gathered}
        self.checked = in_templates | own | {*self.columns.values()}
        scalars = {column for field, column in self.columns.items() if field not in LIST_FIELDS}
        self.lists = {self.columns.get(field, field): field for field in LIST_FIELDS}
        for column in scalars | in_templates:
            self.lists.pop(column, None)

    def __call__(self, row: object) -> dict[str, Value]:
        """The fields of an example. Raises BadRow, which names all that is wrong with the row."""
        if isinstance(row, BadRow):
            raise row
        if not isinstance(row, Mapping):
            raise BadRow(f"expected an object of columns, found {kind_of(row)}")
        fields, problems = self._own_fields(row)
        added: dict[str, Value] = {}
        for field, column in self.columns.items():
            _take(added, field, column, fields, row, problems)
        for field, columns in self.gathered.items():
            _gather(added, field, columns, fields, row, problems)
        fields |= added
        self._derive(fields, row, problems)
        for field, template in self.templates.items():
            values: dict[str, Value] = {}
            for name in template.names:
                _take(values, name, name, fields, row, problems)
            if len(values) == len(template.names):
                added[field] = template.fill(values)
        fields |= added
        for field in self.need:
            if field not in self.columns and field not in self.gathered:
                _take({}, field, field, fields, row, problems)
        if problems:
            raise BadRow("; ".join(problems.values()))
        return fields

    def _own_fields(self, row: Mapping[Any, Any]) -> tuple[dict[str, Value], dict[str, str]]:
        """The columns of a row that may be used, and by column what is wrong with others."""
        fields: dict[str, Value] = {}
        problems: dict[str, str] = {}
        for column, content in row.items():
            value, problem = self._check(self.lists.get(column), content)
            if problem is None:
                assert value is not None
                fields[column] = value
            elif content is not None and (column in self.checked or isinstance(content, str)):
                problems[column] = f"column {column!r} {problem}"
        return fields, problems

    def _check(self, field: str | None, content: object) -> Checked:
        """Check the value of a column; field: the list field that it holds, if any."""
        if field is None:
            return check_scalar(content)
        if isinstance(content, str):
            content = self._as_list(field, content)
        if field == "answers":
            try:
                content = answers_as_list(content)
            except BadRow as error:
                return None, f"is no list of answers: {error}"
        if field in JSON_FIELDS and isinstance(content, list | tuple):
            return check_json(content)
        return check_list(content)

    def _as_list(self, field: str, text: str) -> object:
        """The list that a text holds: written as JSON or Python does, or with the separator."""
        content = written_list(text)
        if content is None and self.separator is not None and field in SEPARABLE:
            parts = [part.strip() for part in text.split(self.separator)]
            return parts if text.strip() else []
        return text if content is None else content

    def _derive(
        self, fields: dict[str, Value], row: Mapping[Any, Any], problems: dict[str, str]
    ) -> None:
        """Add the fields to derive that the row has in another form."""
        for field in self.derived:
            if field in fields or field in self.columns or row.get(field) is not None:
                continue
            try:
                content = derived(field, row)
            except BadRow as error:
                problems[field] = str(error)
                continue
            if content is not None:
                value, problem = (
                    check_json(content) if field in JSON_FIELDS else check_scalar(content)
                )
                if problem is None:
                    fields[field] = value
                else:
                    problems[field] = f"column {_column_of(content, row)!r} {problem}"


def _column_of(content: object, row: Mapping[Any, Any]) -> str:
    """The name of the column that holds this very value."""
    return next((str(name) for name, value in row.items() if value is content), "")


def _take(
    values: dict[str, Value],
    field: str,
    column: str,
    fields: Mapping[str, Value],
    row: Mapping[Any, Any],
    problems: dict[str, str],
) -> None:
    """Set a field to the value of a column, or add what is wrong with it to the problems."""
    if column in fields:
        values[field] = fields[column]
    elif column not in problems and field not in problems:
        cure = known = hint(field, column, row)
        if any(cure in problem for problem in problems.values()):
            cure = ""  # it is said already
        if column in row:
            problems[column] = f"column {column!r} is null{cure}"
        else:
            cure = cure or ("" if known else nearest(column, map(str, row)))
            problems[column] = f"there is no column {column!r}{cure}"


def _gather(
    values: dict[str, Value],
    field: str,
    columns: Sequence[str],
    fields: Mapping[str, Value],
    row: Mapping[Any, Any],
    problems: dict[str, str],
) -> None:
    """Set a field to the values of several columns; `labels` to the names of those that are 1."""
    parts: dict[str, Value] = {}
    for column in columns:
        _take(parts, column, column, fields, row, problems)
    if len(parts) < len(columns):
        return
    if field != "labels":
        values[field] = list(parts.values())
        return
    wrong = {column: value for column, value in parts.items() if not is_flag(value)}
    for column, value in wrong.items():
        problems[column] = f"column {column!r} is {value!r:.80}, not 0 or 1"
    if not wrong:
        values[field] = [column for column, value in parts.items() if is_set(value)]
