"""Readers of data files, one a format: each yields where a row stands, and the row or BadRow."""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from inlay.data.column_files import read_columns
from inlay.data.csv_files import read_cells
from inlay.data.features import arrow_row
from inlay.data.json_files import read_lines, read_whole
from inlay.data.raw import RawRows, number_rows
from inlay.data.text import COMPRESSIONS, TextFile, check_encoding, open_binary, open_text
from inlay.errors import DataError, nearest


@dataclass(frozen=True)
class FileForm:
    """How a file is written, as far as the user says so; None is what its name and bytes tell.

    format: the ending of a format, without its dot.
    encoding: of its text.
    delimiter: the character between its cells; a tab is also written "\\\\t" or "tab".
    """

    format: str | None = None
    encoding: str | None = None
    delimiter: str | None = None

    def __post_init__(self) -> None:
        if self.format is not None and f".{self.format}" not in READERS:
            raise DataError(f"there is no format {self.format!r}{nearest(self.format, _formats())}")
        if self.encoding is not None:
            check_encoding(self.encoding)
        if self.delimiter in ("\\t", "tab"):
            object.__setattr__(self, "delimiter", "\t")
        if self.delimiter is not None and (len(self.delimiter) > 1 or self.delimiter in '"\r\n'):
            raise DataError(
                f"delimiter={self.delimiter!r} is not one character between cells; write one such "
                "as ';', or 'tab'"
            )


TextReader = Callable[[TextFile, str | None], RawRows]
"""Reads a text file; the second argument is the delimiter, for formats that have one."""


def suffix(path: Path) -> str:
    """How a file's name ends, in small letters: `.csv`, or `.csv.gz`."""
    ending = path.suffix.lower()
    return path.with_suffix("").suffix.lower() + ending if ending in COMPRESSIONS else ending


def is_data_file(path: Path) -> bool:
    """Whether a file's name ends as those of a known format."""
    return format_of(path) is not None


def format_of(path: Path) -> str | None:
    """The ending of a file's format: `.csv` for `rows.csv.gz`; None where it is not known."""
    plain = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    ending = plain.suffix.lower()
    if ending not in READERS or (ending == PARQUET and plain != path):
        return None
    return ending


def read_file(path: Path, form: FileForm) -> RawRows:
    """The rows of a data file, compressed or not.

    Raises DataError where the format is unknown, an option is of another format, or the file
    cannot be read.
    """
    ending = format_of(path) if form.format is None else f".{form.format}"
    if ending is None:
        raise DataError(
            f"{path} has no ending of a known data format; known: {known_endings()}; rename it, or "
            "name its format"
        )
    text_reader = READERS[ending]
    if form.delimiter is not None and ending not in SEPARATED:
        raise DataError(
            f"{path}: a delimiter is for {', '.join(SEPARATED)}; leave it out for {ending}"
        )
    if form.encoding is not None and text_reader is None:
        raise DataError(f"{path}: an encoding is for text files; leave it out for {ending}")
    return _rows(path, text_reader, form)


def _rows(path: Path, reader: TextReader | None, form: FileForm) -> RawRows:
    try:
        with open_binary(path) as file:
            if reader is None:
                yield from _parquet(path, file)
            else:
                with open_text(path, file, form.encoding) as text:
                    yield from reader(text, form.delimiter)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is damaged, or not compressed with {_compression(path)}: {error}"
        ) from None
    except UnicodeError as error:
        raise DataError(
            f"{path} is not text in the encoding {form.encoding or 'UTF-16'}: {error}; name its "
            "encoding, such as encoding='utf-8'"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _compression(path: Path) -> str:
    return COMPRESSIONS.get(path.suffix.lower(), "gzip")


def _parquet(path: Path, file: BinaryIO) -> RawRows:
    try:
        import pyarrow  # of the extra `data`
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path} cannot be read without pyarrow; install it: pip install 'inlay[data]'"
        ) from None
    try:
        table = parquet.ParquetFile(file)
        metadata = (table.schema_arrow.metadata or {}).get(b"huggingface")
        features = None if metadata is None else _features(metadata)
        rows = _flat(batch.to_pylist() for batch in table.iter_batches())
        yield from number_rows(str(path), map(arrow_row(features), rows))
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a whole Parquet file: {error}") from None


def _features(metadata: bytes) -> dict[str, object] | None:
    """The features that `datasets` has written into a Parquet file; None for anything else."""
    try:
        features = json.loads(metadata)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return None
    return features if isinstance(features, dict) else None


def _flat(batches: Iterator[list[dict[str, object]]]) -> Iterator[dict[str, object]]:
    for batch in batches:
        yield from batch


def _conllu(text: TextFile, delimiter: str | None) -> RawRows:
    return read_columns(text, delimiter, conllu=True)


PARQUET = ".parquet"

COLUMN_FILES = (".conll", ".iob", ".iob2", ".bio", ".conllu")

READERS: dict[str, TextReader | None] = {
    ".jsonl": lambda text, _: read_lines(text),
    ".ndjson": lambda text, _: read_lines(text),
    ".json": lambda text, _: read_whole(text),
    ".csv": lambda text, delimiter: read_cells(text, delimiter, ","),
    ".tsv": lambda text, delimiter: read_cells(text, delimiter, "\t"),
    PARQUET: None,
    **dict.fromkeys(COLUMN_FILES, read_columns),
    ".conllu": _conllu,
}
"""The reader of a text file by the end of its name; None for Parquet, which is not text."""

SEPARATED = (".csv", ".tsv", *COLUMN_FILES)
"""The formats with a delimiter."""


def known_endings() -> str:
    """The endings of all formats, for messages."""
    return f"{', '.join(READERS)}, and .gz, .bz2 or .xz after any but {PARQUET}"


def _formats() -> list[str]:
    return [ending.removeprefix(".") for ending in READERS]
