"""Readers of data files, one a format: each yields where a row stands, and the row or BadRow."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from inlay.data.raw import BadRow, RawRows, kind_of, number_rows
from inlay.errors import DataError

WIDEST_FIELD = 2**31 - 1
"""Characters that a CSV field may have; the csv module's own 131,072 refuses long documents."""

GZIP = ".gz"

Reader = Callable[[Path, BinaryIO], RawRows]


def read_file(path: Path) -> RawRows:
    """The rows of a data file, compressed with gzip or not.

    Raises DataError where the format is unknown or the file cannot be read.
    """
    reader = READERS.get(suffix(path))
    if reader is None:
        raise DataError(f"{path} has no ending of a known data format; known: {', '.join(READERS)}")
    return _rows(path, reader)


def suffix(path: Path) -> str:
    """How a file's name ends: `.csv`, or `.csv.gz`."""
    compressed = path.suffix == GZIP
    return path.with_suffix("").suffix + GZIP if compressed else path.suffix


def _rows(path: Path, reader: Reader) -> RawRows:
    open_file = gzip.open if path.suffix == GZIP else open
    try:
        with open_file(path, "rb") as file:
            yield from reader(path, cast(BinaryIO, file))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged, or not compressed with gzip: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _jsonl(path: Path, file: BinaryIO) -> RawRows:
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            row: object
            try:
                row = json.loads(line.decode(), object_pairs_hook=_unique)
            except UnicodeDecodeError as error:
                row = BadRow(f"not valid UTF-8 at byte {error.start + 1} of the line")
            except json.JSONDecodeError as error:
                row = BadRow(f"not valid JSON: {error.msg} at column {error.colno}")
            except (ValueError, RecursionError) as error:
                row = BadRow(f"not usable JSON: {error}")
            yield f"{path}:{number}", row


def _json(path: Path, file: BinaryIO) -> RawRows:
    try:
        rows = json.loads(file.read().decode("utf-8-sig"), object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        cure = "; name a file with one object per line .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error.msg}{cure}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not usable JSON: {error}") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of objects, found {kind_of(rows)}")
    yield from number_rows(str(path), rows)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The pairs of a JSON object as a dict. Raises ValueError where a name is repeated."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {repeated!r} is repeated")
    return row


def _csv(path: Path, file: BinaryIO) -> RawRows:
    # Bytes that are not UTF-8 become lone surrogates here, and a bad row in `fields.py`.
    lines = (line.decode(errors="surrogateescape") for line in file)
    first = next(lines, "").removeprefix("\ufeff")
    reader = csv.reader(itertools.chain([first], lines), strict=True)
    limit = csv.field_size_limit(WIDEST_FIELD)
    try:
        header: list[str] | None = None
        while True:
            where = f"{path}:{reader.line_num + 1}"
            row: object
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if header is None:
                    raise DataError(f"{where}: not a CSV header: {error}") from None
                row = BadRow(f"not valid CSV: {error}")
            else:
                if not cells:
                    continue
                if header is None:
                    header = _header(where, cells)
                    continue
                if len(cells) == len(header):
                    row = dict(zip(header, cells, strict=True))
                else:
                    row = BadRow(f"{len(cells)} cells under a header of {len(header)}")
            yield where, row
    finally:
        csv.field_size_limit(limit)


def _header(where: str, names: list[str]) -> list[str]:
    for name in names:
        if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in name):
            raise DataError(f"{where}: the header is not UTF-8 text; save the file as UTF-8")
        if names.count(name) > 1:
            raise DataError(f"{where}: the header names column {name!r} twice; rename one of them")
    return names


def _parquet(path: Path, file: BinaryIO) -> RawRows:
    try:
        import pyarrow  # of the extra `data`
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path} cannot be read without pyarrow; install it: pip install 'inlay[data]'"
        ) from None
    try:
        batches = parquet.ParquetFile(file).iter_batches()
        yield from number_rows(str(path), _flat(batch.to_pylist() for batch in batches))
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a whole Parquet file: {error}") from None


def _flat(batches: Iterator[list[object]]) -> Iterator[object]:
    for batch in batches:
        yield from batch


READERS: dict[str, Reader] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
READERS |= {ending + GZIP: READERS[ending] for ending in (".jsonl", ".json", ".csv")}
"""The reader of a file by the end of its name. A Parquet file is compressed inside."""
