"""Reading a source of rows into examples: `load` into memory, `stream` on each pass anew."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inlay.data.dataset import Dataset, Example, Skipped, Stream
from inlay.data.fields import RowParser
from inlay.data.raw import BadRow, RawRows
from inlay.data.sampling import check_sizes, sample, sample_per_label
from inlay.data.sources import open_source
from inlay.errors import DataError


def load(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    template: str | Mapping[str, str] | None = None,
    need: Collection[str] = (),
    limit: int | None = None,
    shots: int | None = None,
    skip_bad: bool = False,
    seed: int = 0,
) -> Dataset:
    """Read a source of rows into a `Dataset`.

    Args:
        source: a `.jsonl`, `.json` (a list of objects), `.csv` (with a header) or `.parquet`
            file, of which the first three may end in `.gz`; a folder that holds one such file per
            split; rows in memory; `"movie-reviews"`, `"amazon-reviews"`, `"tweets"` or
            `"editorials"`, sentences labelled `positive` or `negative` that are fetched from the
            package index, with splits `train`, `dev` and `test`; or whatever
            `datasets.load_dataset` takes, as `"name"` or `"name:config"`.
        split: which part of a folder or of a `datasets` source. A single file has none.
        columns: the name of a field that tasks read -> the column that holds it, such as
            `{"text": "review"}`. A row without that column is a bad row.
        template: text with `{column}` names. A string is the row's input and becomes both
            `text` and `source`; a mapping says which field each template fills.
        need: fields that every row must end up with, such as a task's `needs`.
        limit: keep a sample of at most this many rows, drawn with `seed`, in the source's order.
        shots: keep this many rows of each `label` instead, drawn and ordered likewise.
        skip_bad: collect bad rows in `Dataset.skipped` instead of raising DataError.
        seed: which sample `limit` or `shots` draws.

    A null counts as absent. A field that tasks read, a mapped column and a column used in a
    template must be text or a finite number; `tokens`, `tags`, `answers`, `choices`, `labels`,
    `scores`, `targets` and `messages` may be lists of these instead, or of lists and objects of
    them. Other columns that are neither are left out of the example.

    Raises:
        DataError: the source cannot be read, holds no usable row, or (without `skip_bad`) has a
            bad row, which is named; or has fewer rows of a label than `shots`.
        FetchError: bundled data cannot be fetched.
    """
    check_sizes(limit, shots)
    parse = RowParser(columns, template, need)
    name, rows = open_source(source, split)
    skipped: list[Skipped] = []
    examples = list(_examples(rows, parse, skipped if skip_bad else None))
    _check_not_empty(name, len(examples), skipped)
    if limit is not None:
        examples = sample(examples, limit, seed)
    if shots is not None:
        examples = sample_per_label(name, examples, shots, seed)
    return Dataset(name, tuple(examples), tuple(skipped))


def stream(
    source: str | Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    template: str | Mapping[str, str] | None = None,
    need: Collection[str] = (),
    skip_bad: bool = False,
) -> Stream:
    """Read a source that may be larger than memory; the arguments are those of `load`.

    Every row is read once now, so that a bad row is found at once, and again on each pass.

    Raises DataError and FetchError as `load` does.
    """
    parse = RowParser(columns, template, need)
    name, rows = open_source(source, split)
    skipped: list[Skipped] = []
    count = sum(1 for _ in _examples(rows, parse, skipped if skip_bad else None))
    _check_not_empty(name, count, skipped)

    def read() -> Iterator[Example]:
        return _examples(open_source(source, split)[1], parse, [] if skip_bad else None)

    return Stream(name, count, tuple(skipped), read)


def _examples(rows: RawRows, parse: RowParser, skipped: list[Skipped] | None) -> Iterator[Example]:
    """The examples of the rows. A bad row is added to `skipped`, or raises DataError if None."""
    for where, row in rows:
        try:
            yield Example(parse(row), where)
        except BadRow as error:
            if skipped is None:
                raise DataError(f"{where}: {error}") from None
            skipped.append(Skipped(where, str(error)))


def _check_not_empty(name: str, count: int, skipped: Sequence[Skipped]) -> None:
    if count:
        return
    if skipped:
        raise DataError(
            f"{name} holds no usable row: all {len(skipped)} rows are bad, "
            f"the first at {skipped[0]}"
        )
    raise DataError(f"{name} holds no rows; give a source that has some")
