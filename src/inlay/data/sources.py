"""Where rows come from: memory, files, folders of splits, bundled data, and `datasets`."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from inlay.data.features import arrow_row
from inlay.data.raw import RawRows, number_rows
from inlay.data.readers import FileForm, is_data_file, known_endings, read_file, suffix
from inlay.errors import DataError, nearest
from inlay.hub.models import fetch_sentiment

BUNDLED = {
    "movie-reviews": "movie",
    "amazon-reviews": "amazon",
    "tweets": "tweets",
    "editorials": "nyt",
}
"""Bundled data sets by name, and their folders in what `hub.models.fetch_sentiment` fetches."""

SHARD = re.compile(r"-\d{5}-of-\d{5}")
"""What follows the name of a split in the name of a file that is a part of it."""

SAVED = ("state.json", "dataset_dict.json")
"""Files in a folder that `datasets` saved."""

Source = str | Path | Iterable[Mapping[str, Any]]


def open_source(
    source: Source, split: str | None, form: FileForm | None = None
) -> tuple[str, RawRows]:
    """The name of a source and its rows; bundled data are fetched.

    form: how a file is written, as far as the user says so; other sources take none.

    Raises DataError where the source or the split does not exist, FetchError where bundled data
    cannot be fetched.
    """
    form = form or FileForm()
    if not isinstance(source, str | Path):
        if split is not None:
            raise DataError(f"rows in memory have no split {split!r}; pass the rows of that split")
        _check_no_form(form, "rows in memory")
        return "rows", number_rows("rows", _rows_in_memory(source))
    path = Path(source)
    if isinstance(source, str) and source in BUNDLED and not path.exists():
        path = fetch_sentiment() / BUNDLED[source]
    if any((path / name).is_file() for name in SAVED):
        _check_no_form(form, f"the data set {source}")
        return str(source), number_rows(str(source), _load_saved(path, split))
    if path.is_dir():
        paths = _split_files(path, split)
        name = str(paths[0]) if len(paths) == 1 else f"{path}/{split}"
        return name, itertools.chain.from_iterable(read_file(file, form) for file in paths)
    if path.is_file():
        if split is not None:
            raise DataError(f"{source} is a single file without split {split!r}; leave split out")
    elif is_data_file(path) or _similar_files(path):
        raise DataError(f"there is no file {source}{_similar_files(path) or '; check its path'}")
    else:
        _check_no_form(form, f"the data set {source}")
        return str(source), number_rows(str(source), _load_published(str(source), split))
    return str(path), read_file(path, form)


def _check_no_form(form: FileForm, source: str) -> None:
    if form != FileForm():
        raise DataError(
            f"format, encoding and delimiter are for files; leave them out for {source}"
        )


def _similar_files(path: Path) -> str:
    """The end of a message about a file that is missing: the data files that could be meant."""
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent}" if is_data_file(path) else ""
    stem = path.name.removesuffix(suffix(path)) if is_data_file(path) else path.name
    stems: dict[str, Path] = {}
    for file in sorted(path.parent.iterdir()):
        if is_data_file(file):
            stems.setdefault(file.name.removesuffix(suffix(file)), file)
    similar = get_close_matches(stem, stems, 1) if is_data_file(path) else []
    meant = stems.get(stem) or (stems[similar[0]] if similar else None)
    return "" if meant is None else f"; did you mean {meant}?"


def _split_files(folder: Path, split: str | None) -> list[Path]:
    """The file of a folder that holds the split: `train.jsonl` holds the split "train".

    Or its parts in their order, `train-00000-of-00002.parquet` and so on.
    """
    splits = {
        path: SHARD.sub("", path.name.removesuffix(suffix(path)))
        for path in sorted(folder.iterdir())
        if is_data_file(path)
    }
    paths = [path for path, name in splits.items() if name == split]
    if len(paths) == 1 or (paths and all(SHARD.search(path.name) for path in paths)):
        return paths
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise DataError(f"{folder} holds split {split!r} in several files; name one: {names}")
    if not splits:
        raise DataError(f"{folder} holds no file of a known format; known: {known_endings()}")
    known = sorted(set(splits.values()))
    if split is None:
        raise DataError(f"{folder} is a folder of splits; name one: {', '.join(known)}")
    raise DataError(f"{folder} holds no split {split!r}{nearest(split, known)}")


def _load_saved(folder: Path, split: str | None) -> Iterable[object]:
    """The rows of what `save_to_disk` of a `datasets` data set wrote."""
    try:
        import datasets  # of the extra `data`
    except ImportError:
        raise DataError(
            f"{folder} cannot be read without datasets; install it: pip install 'inlay[data]'"
        ) from None
    saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, datasets.Dataset):
        if split is not None:
            raise DataError(f"{folder} is a single split; leave split {split!r} out")
        return _rows_in_memory(saved)
    if split is None or split not in saved:
        raise DataError(f"{folder} holds no split {split!r}{nearest(str(split), saved)}")
    return _rows_in_memory(saved[split])


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
    return _rows_in_memory(published)


def _without_arrays(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with lists in place of arrays, as which a data frame holds them."""
    numpy = sys.modules["numpy"]  # pandas imports it
    return {
        name: value.tolist() if isinstance(value, numpy.ndarray) else value
        for name, value in row.items()
    }


def _rows_in_memory(rows: Iterable[Any]) -> Iterable[object]:
    """The rows of a data frame or of a `datasets` data set, with the names of its classes.

    Raises DataError for several splits in one.
    """
    pandas = sys.modules.get("pandas")  # not imported: then these rows are not from there
    if pandas is not None and isinstance(rows, pandas.DataFrame):
        frame = rows.astype(object).where(rows.notna(), None)
        return map(_without_arrays, frame.to_dict("records"))
    datasets = sys.modules.get("datasets")
    if datasets is None:
        return rows
    if isinstance(rows, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise DataError(f"these rows have several splits; pass one of them: {', '.join(rows)}")
    if not isinstance(rows, datasets.Dataset | datasets.IterableDataset):
        return rows
    features = None if rows.features is None else rows.features.to_dict()
    return map(arrow_row(features), rows.with_format(None))
