"""Files of predictions: a row after the other, so that they may be larger than memory.

Lines are appended whole: whatever ends the run, a `.csv`, `.tsv` or `.jsonl` holds whole rows. A
`.parquet` cannot be read before it is closed: it is written under another name and gets its own
when it is closed, which it is after Ctrl-C and after an error too.
"""

from __future__ import annotations

import csv
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import override

from inlay.data.inputs import Census
from inlay.errors import DataError, FileError
from inlay.tasks.records import Column

DIGITS = 6
"""Significant digits of the numbers of a prediction; single precision has seven."""

Line = Mapping[str, Any]
"""A row of the output, by column."""


class Writer(ABC):
    """Writes rows; to be used in a `with` block. The file is created with its first rows."""

    def __init__(self, path: Path, own: Census, columns: Sequence[Column]):
        self.path = path
        self.own = own
        self.columns = columns

    @property
    def names(self) -> list[str]:
        """All columns of the output."""
        return [*self.own.columns, *(column.name for column in self.columns)]

    @abstractmethod
    def write(self, lines: Sequence[Line]) -> None:
        """Add rows. Raises FileError."""

    @abstractmethod
    def close(self) -> None:
        """End the file. Raises FileError."""

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class LineWriter(Writer):
    """Appends lines of text to a file."""

    def __init__(self, path: Path, own: Census, columns: Sequence[Column]):
        super().__init__(path, own, columns)
        self._file: io.FileIO | None = None

    @abstractmethod
    def text(self, lines: Sequence[Line]) -> str:
        """Rows as text, with a line break after each."""

    def header(self) -> str:
        """What comes before the first row."""
        return ""

    @override
    def write(self, lines: Sequence[Line]) -> None:
        text = self.text(lines)
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "wb", buffering=0)  # noqa: SIM115
                text = self.header() + text
            before = self._file.tell()
            try:
                self._put(self._file, text.encode())
            except BaseException:
                self._file.truncate(before)  # whole lines or none
                raise
        except OSError as error:
            raise FileError(f"cannot write {self.path}: {error.strerror}") from None

    @staticmethod
    def _put(file: io.FileIO, data: bytes) -> None:
        """Write everything, however much a call takes."""
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) or 0 :]

    @override
    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class JsonLinesWriter(LineWriter):
    """A JSON object a line; values keep their types."""

    @override
    def text(self, lines: Sequence[Line]) -> str:
        return "".join(f"{json_text(line)}\n" for line in lines)


class CsvWriter(LineWriter):
    """Comma-separated values with a header; lists and objects are written as JSON."""

    delimiter = ","

    @override
    def header(self) -> str:
        return self._rows([self.names])

    @override
    def text(self, lines: Sequence[Line]) -> str:
        return self._rows([[cell(line.get(name)) for name in self.names] for line in lines])

    def _rows(self, rows: Sequence[Sequence[str]]) -> str:
        buffer = io.StringIO()
        csv.writer(buffer, delimiter=self.delimiter, lineterminator="\n").writerows(rows)
        return buffer.getvalue()


class TsvWriter(CsvWriter):
    """The same with tabs."""

    delimiter = "\t"


class ParquetWriter(Writer):
    """A Parquet file; every call of `write` adds a group of rows."""

    def __init__(self, path: Path, own: Census, columns: Sequence[Column]):
        super().__init__(path, own, columns)
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise DataError(
                f"{path} cannot be written without pyarrow; install it: pip install 'inlay[data]'"
            ) from None
        self._arrow, self._parquet = pyarrow, parquet
        self._partial = path.with_name(f".{path.name}.{os.getpid()}")
        self._file: Any = None
        types = {name: self._own_type(kinds) for name, kinds in own.columns.items()}
        self._as_json = {name for name, kind in types.items() if kind is None}
        self._types = {name: kind or pyarrow.string() for name, kind in types.items()}

    @override
    def write(self, lines: Sequence[Line]) -> None:
        arrow = self._arrow
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                for column in self.columns:
                    self._types[column.name] = self._type(column)
                self._schema = arrow.schema(list(self._types.items()))
                self._file = self._parquet.ParquetWriter(self._partial, self._schema)
            rows = [self._row(line) for line in lines]
            self._file.write_table(arrow.Table.from_pylist(rows, schema=self._schema))
        except arrow.ArrowException as error:
            raise FileError(f"cannot write {self.path}: {error}") from None
        except OSError as error:
            raise FileError(f"cannot write {self.path}: {error.strerror or error}") from None

    @override
    def close(self) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
            os.replace(self._partial, self.path)
        except OSError as error:
            raise FileError(f"cannot write {self.path}: {error.strerror or error}") from None
        finally:
            self._partial.unlink(missing_ok=True)

    def _row(self, line: Line) -> dict[str, Any]:
        return {
            name: json_text(value)
            if name in self._as_json and value is not None and not isinstance(value, str)
            else value
            for name, value in line.items()
        }

    def _own_type(self, kinds: set[str]) -> Any:
        """The type of one of the rows' own columns; None where values are written as JSON."""
        arrow, kinds = self._arrow, kinds - {"null"}
        if kinds == {"integer", "number"}:
            kinds = {"number"}
        types = {
            "text": arrow.string(), "integer": arrow.int64(), "number": arrow.float64(),
            "truth": arrow.bool_(), "texts": arrow.list_(arrow.string()),
        }  # fmt: skip
        if not kinds:
            return arrow.string()
        return types.get(next(iter(kinds))) if len(kinds) == 1 else None

    def _type(self, column: Column) -> Any:
        """The type of a column of predictions."""
        arrow = self._arrow
        text, number = arrow.string(), arrow.float64()
        entity = {"text": text, "label": text, "start": arrow.int64(), "end": arrow.int64(),
                  "score": number}  # fmt: skip
        match column.kind:
            case "by label":
                return arrow.struct([(name, number) for name in column.labels])
            case "texts":
                return arrow.list_(text)
            case "integer":
                return arrow.int64()
            case "number":
                return number
            case "numbers":
                return arrow.list_(number)
            case "entities":
                return arrow.list_(arrow.struct(list(entity.items())))
            case "text":
                return text
        self._as_json.add(column.name)
        return text


WRITERS: dict[str, type[Writer]] = {
    ".jsonl": JsonLinesWriter,
    ".csv": CsvWriter,
    ".tsv": TsvWriter,
    ".parquet": ParquetWriter,
}
"""The writer of a file by the end of its name."""


def check_target(path: Path, overwrite: bool) -> type[Writer]:
    """The writer for a file that can be written.

    Raises DataError for an unknown ending, and FileError where the file exists already.
    """
    if path.suffix not in WRITERS:
        raise DataError(
            f"{path} has no ending of a format that predictions are written in; known: "
            f"{', '.join(WRITERS)}"
        )
    if path.is_dir():
        raise FileError(f"{path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise FileError(f"{path} exists already; name another file, or replace it (--overwrite)")
    return WRITERS[path.suffix]


def rounded(value: Any) -> Any:
    """Numbers of a prediction with as many digits as mean something."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


def json_text(value: Any) -> str:
    """A value as JSON on one line; what JSON does not know, such as a date, as text."""
    return json.dumps(value, ensure_ascii=False, default=str)


def cell(value: Any) -> str:
    """A value as the text of a cell."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json_text(value) if isinstance(value, bool | dict | list) else str(value)
