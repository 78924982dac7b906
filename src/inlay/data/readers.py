"""Readers of data files: each yields where a row stands, and the row or what is wrong with it."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from inlay.errors import DataError, nearest

WIDEST_FIELD = 2**31 - 1  # characters; csv's own default of 131,072 refuses long documents
PACKED = ".gz"


class BadRow(Exception):
    """Why one row cannot be used; on its way to a DataError or to `Dataset.skipped`."""


KINDS = {type(None): "null", dict: "an object", list: "a list", int: "a number", str: "a text"}


def kind_of(value: object) -> str:
    """A value's type as a message names it."""
    return KINDS.get(type(value), f"a {type(value).__name__}")


Rows = Iterator[tuple[str, object]]  # where a row stands, and the row, or BadRow


def open_rows(
    source: str | Path | Iterable[Mapping[str, Any]], split: str | None
) -> tuple[str, Rows]:
    """A source's name and its rows."""
    if not isinstance(source, str | Path):
        if split is not None:
            raise DataError(f"rows in memory have no split {split!r}; give the rows of that split")
        return "rows", _numbered("rows", _named_labels(source))
    path = Path(source)
    if path.is_dir():
        path = _part(path, split)
    elif path.is_file():
        if split is not None:
            raise DataError(f"{source} is one file and has no split {split!r}; leave split out")
    elif _ending(path) in READERS:
        raise DataError(f"there is no file {source}")
    else:
        return str(source), _numbered(str(source), _published(str(source), split))
    read = READERS.get(_ending(path))
    if read is None:
        raise DataError(f"{path} is not a file that can be read; known: {', '.join(READERS)}")
    return str(path), _guarded(path, read)


def _part(folder: Path, split: str | None) -> Path:
    """The one file of a folder that holds the split."""
    files = [path for path in sorted(folder.iterdir()) if _ending(path) in READERS]
    named = {path: path.name.removesuffix(_ending(path)) for path in files}
    splits = sorted(set(named.values()))
    found = [path for path in files if named[path] == split]
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        raise DataError(f"{folder} holds split {split!r} {len(found)} times; name the file")
    if not splits:
        raise DataError(f"{folder} holds no file that can be read; known: {', '.join(READERS)}")
    if split is None:
        raise DataError(f"{folder} is a folder; name a split of it: {', '.join(splits)}")
    raise DataError(f"{folder} holds no split {split!r}{nearest(split, splits)}")


def _ending(path: Path) -> str:
    """How a file's name ends: `.csv`, or `.csv.gz`."""
    packed = path.suffix == PACKED
    return path.with_suffix("").suffix + PACKED if packed else path.suffix


def _guarded(path: Path, read: Callable[[Path, BinaryIO], Rows]) -> Rows:
    open_ = gzip.open if path.suffix == PACKED else open
    try:
        with open_(path, "rb") as file:
            yield from read(path, cast(BinaryIO, file))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged, or not compressed with gzip: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _numbered(name: str, rows: Iterable[object]) -> Rows:
    return ((f"{name}#{number}", row) for number, row in enumerate(rows, 1))


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} stands there twice")
    return row


def _jsonl(path: Path, file: BinaryIO) -> Rows:
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


def _json(path: Path, file: BinaryIO) -> Rows:
    try:
        rows = json.loads(file.read().decode("utf-8-sig"), object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        cure = "; one object per line is .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error.msg}{cure}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not usable JSON: {error}") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of objects, found {kind_of(rows)}")
    yield from _numbered(str(path), rows)


def _csv(path: Path, file: BinaryIO) -> Rows:
    # Undecodable bytes become lone surrogates here, and a bad row in `inlay.data`.
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
            raise DataError(f"{where}: the header is not UTF-8 text")
        if names.count(name) > 1:
            raise DataError(f"{where}: the header names column {name!r} twice")
    return names


def _parquet(path: Path, file: BinaryIO) -> Rows:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path} needs pyarrow: pip install 'inlay[data]'") from None
    try:
        batches = parquet.ParquetFile(file).iter_batches()
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from _numbered(str(path), rows)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a whole Parquet file: {error}") from None


READERS: dict[str, Callable[[Path, BinaryIO], Rows]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
READERS |= {ending + PACKED: READERS[ending] for ending in (".jsonl", ".json", ".csv")}
"""How to read a file, by how its name ends. A Parquet file is compressed inside."""


def _published(name: str, split: str | None) -> Iterable[object]:
    """The rows of a data set that `datasets` finds by name."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"there is no file {name}, and to look for a data set of that name takes datasets: "
            "pip install 'inlay[data]'"
        ) from None
    path, _, config = name.partition(":")
    try:
        found = datasets.load_dataset(path, config or None, split=split)
    except Exception as error:  # whatever a loader, the network or a cache raises
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"no file {name}, and datasets cannot load it: {reason}") from error
    if not isinstance(found, datasets.Dataset):
        raise DataError(f"{name} comes in parts; name a split of it: {', '.join(sorted(found))}")
    return _named_labels(found)


def _named_labels(rows: Iterable[Any]) -> Iterable[object]:
    """Rows of `datasets` with their class numbers turned into the names they stand for."""
    datasets = sys.modules.get("datasets")  # not imported: then these rows are not from there
    if datasets is None or not isinstance(rows, datasets.Dataset):
        return rows
    named = {k: v for k, v in rows.features.items() if isinstance(v, datasets.ClassLabel)}

    def name(row: Mapping[str, Any]) -> object:
        try:
            return dict(row) | {k: v.int2str(row[k]) for k, v in named.items()}
        except (TypeError, ValueError) as error:  # null, or the -1 of an unlabelled test split
            return BadRow(f"a class number without a name: {error}")

    return map(name, rows)
