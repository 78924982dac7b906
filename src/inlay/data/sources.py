"""Where rows come from: memory, files, folders of splits, bundled data, and `datasets`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from inlay.data.raw import BadRow, RawRows, number_rows
from inlay.data.readers import READERS, read_file, suffix
from inlay.errors import DataError, nearest
from inlay.hub.models import fetch_sentiment

BUNDLED = {
    "movie-reviews": "movie",
    "amazon-reviews": "amazon",
    "tweets": "tweets",
    "editorials": "nyt",
}
"""Bundled data sets by name, and their folders in what `hub.models.fetch_sentiment` fetches."""

Source = str | Path | Iterable[Mapping[str, Any]]


def open_source(source: Source, split: str | None) -> tuple[str, RawRows]:
    """The name of a source and its rows; bundled data are fetched.

    Raises DataError where the source or the split does not exist, FetchError where bundled data
    cannot be fetched.
    """
    if not isinstance(source, str | Path):
        if split is not None:
            raise DataError(f"rows in memory have no split {split!r}; pass the rows of that split")
        return "rows", number_rows("rows", _with_label_names(source))
    path = Path(source)
    if isinstance(source, str) and source in BUNDLED and not path.exists():
        path = fetch_sentiment() / BUNDLED[source]
    if path.is_dir():
        path = _split_file(path, split)
    elif path.is_file():
        if split is not None:
            raise DataError(f"{source} is a single file without split {split!r}; leave split out")
    elif suffix(path) in READERS:
        raise DataError(f"there is no file {source}; check its path")
    else:
        return str(source), number_rows(str(source), _load_published(str(source), split))
    return str(path), read_file(path)


def _split_file(folder: Path, split: str | None) -> Path:
    """The file of a folder that holds the split: `train.jsonl` holds the split "train"."""
    splits = {
        path: path.name.removesuffix(suffix(path))
        for path in sorted(folder.iterdir())
        if suffix(path) in READERS
    }
    paths = [path for path, name in splits.items() if name == split]
    if len(paths) == 1:
        return paths[0]
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise DataError(f"{folder} holds split {split!r} in several files; name one: {names}")
    if not splits:
        raise DataError(f"{folder} holds no file of a known format; known: {', '.join(READERS)}")
    known = sorted(set(splits.values()))
    if split is None:
        raise DataError(f"{folder} is a folder of splits; name one: {', '.join(known)}")
    raise DataError(f"{folder} holds no split {split!r}{nearest(split, known)}")


def _load_published(name: str, split: str | None) -> Iterable[object]:
    """The rows of what `datasets.load_dataset` finds: `"name"` or `"name:config"`."""
    if get_close_matches(name, BUNDLED, 1, 0.8):  # a typing error: do not search elsewhere
        raise DataError(f"there is no file {name}{nearest(name, BUNDLED)}")
    try:
        import datasets  # of the extra `data`
    except ImportError:
        raise DataError(
            f"there is no file {name}, and searching for a published data set needs datasets; "
            "install it: pip install 'inlay[data]'"
        ) from None
    path, _, config = name.partition(":")
    try:
        published = datasets.load_dataset(path, config or None, split=split)
    except Exception as error:  # whatever a loader, the network or a cache raises
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(
            f"there is no file {name}, and datasets cannot load it: {reason}"
        ) from error
    if not isinstance(published, datasets.Dataset):
        raise DataError(f"{name} has several splits; name one: {', '.join(sorted(published))}")
    return _with_label_names(published)


def _with_label_names(rows: Iterable[Any]) -> Iterable[object]:
    """The rows; in those of a `datasets.Dataset`, class numbers become the names of the classes."""
    datasets = sys.modules.get("datasets")  # not imported: then these rows are not from there
    if datasets is None or not isinstance(rows, datasets.Dataset):
        return rows
    classes = {
        column: feature
        for column, feature in rows.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }

    def with_names(row: Mapping[str, Any]) -> object:
        try:
            return dict(row) | {
                column: feature.int2str(row[column]) for column, feature in classes.items()
            }
        except (TypeError, ValueError) as error:  # null, or the -1 of an unlabelled test split
            return BadRow(f"a class number without a name: {error}")

    return map(with_names, rows)
