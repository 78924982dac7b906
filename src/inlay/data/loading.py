"""Reading a source of rows into examples: `load` into memory, `stream` on each pass anew."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from inlay.data.dataset import Dataset, Example, Skipped, Stream, bad_rows, no_rows
from inlay.data.fields import Columns, RowParser
from inlay.data.raw import BadRow, RawRows
from inlay.data.readers import FileForm
from inlay.data.sampling import check_sizes, sample, sample_per_label
from inlay.data.sources import open_source
from inlay.errors import DataError

Check = Callable[[Example], None]
"""Raises DataError for an example that cannot be used."""


def load(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    split: str | None = None,
    columns: Columns | None = None,
    template: str | Mapping[str, str] | None = None,
    need: Collection[str] = (),
    check: Check | None = None,
    limit: int | None = None,
    shots: int | None = None,
    skip_bad: bool = False,
    seed: int = 0,
    format: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    separator: str | None = None,
) -> Dataset:
    """Read a source of rows into a `Dataset`.

    Args:
        source: a `.jsonl`, `.json` (a list of objects), `.csv` or `.tsv` (with a header),
            `.parquet` or column file (`.conll`, `.iob`, `.bio`, `.conllu`: a word on each line),
            which may end in `.gz`, `.bz2` or `.xz` too; a folder that holds one such file per
            split; rows in memory; `"movie-reviews"`, `"amazon-reviews"`, `"tweets"` or
            `"editorials"`, sentences labelled `positive` or `negative` that are fetched from the
            package index, with splits `train`, `dev` and `test`; or whatever
            `datasets.load_dataset` takes, as `"name"` or `"name:config"`.
        split: which part of a folder or of a `datasets` source. A single file has none.
        columns: the name of a field that tasks read -> the column that holds it, such as
            `{"text": "review"}`. A row without that column is a bad row. `choices` and `targets`
            may be gathered from several columns, and `labels` from columns of 0 and 1 named after
            the labels: `{"labels": ["sports", "politics"]}`. The columns of a column file are
            called "1", "2" and so on; its tags are the last one.
        template: text with `{column}` names. A string is the row's input and becomes both
            `text` and `source`; a mapping says which field each template fills.
        need: fields that every row must end up with, such as a task's `required_fields`.
        check: raises DataError for an example that is bad for another reason, such as a task's
            `check`.
        limit: keep a sample of at most this many rows, drawn with `seed`, in the source's order.
        shots: keep this many rows of each `label` instead, drawn and ordered likewise.
        skip_bad: collect bad rows in `Dataset.skipped` instead of raising DataError.
        seed: which sample `limit` or `shots` draws.
        format: the ending of a format, such as "conll", for a file that ends otherwise.
        encoding: of a text file, such as "cp1252" or "gbk". None for UTF-8, or UTF-16 or UTF-32
            where the file's first bytes say so.
        delimiter: the character between the cells of a `.csv`, `.tsv` or column file. None for
            that of the ending, or ";", "|", "," or a tab where the header is separated by it.
        separator: what separates the items of a list that is written as one text, such as "|" for
            the labels "sports|politics".

    A null counts as absent. A field that tasks read, a mapped column and a column used in a
    template must be text or a finite number; `tokens`, `tags`, `answers`, `choices`, `labels`,
    `scores`, `targets`, `messages` and `tools` may be lists of these instead, or of lists and
    objects of them, also written as JSON in one text. Other columns that are neither are left out
    of the example.

    Rows of other forms are read too where `need` names the field: ShareGPT's `conversations`,
    Alpaca's `instruction`, `input` and `output`, `prompt` and `completion` as `source` and
    `target` or as `messages`; SQuAD's articles, and its answers with `answer_start`.

    Raises:
        DataError: the source cannot be read, holds no usable row, or (without `skip_bad`) has bad
            rows, of which the first is named; or has fewer rows of a label than `shots`.
        FetchError: bundled data cannot be fetched.
    """
    check_sizes(limit, shots)
    parse = RowParser(columns, template, need, separator)
    form = FileForm(format, encoding, delimiter)
    name, rows = open_source(source, split, form)
    bad: list[Skipped] = []
    examples = list(_examples(rows, parse, check, bad))
    _check_bad(name, len(examples), bad, skip_bad)
    if limit is not None:
        examples = sample(examples, limit, seed)
    if shots is not None:
        examples = sample_per_label(name, examples, shots, seed)
    return Dataset(name, tuple(examples), tuple(bad))


def stream(
    source: str | Path,
    *,
    split: str | None = None,
    columns: Columns | None = None,
    template: str | Mapping[str, str] | None = None,
    need: Collection[str] = (),
    check: Check | None = None,
    skip_bad: bool = False,
    format: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    separator: str | None = None,
) -> Stream:
    """Read a source that may be larger than memory; the arguments are those of `load`.

    Every row is read once now, so that a bad row is found at once, and again on each pass.

    Raises DataError and FetchError as `load` does.
    """
    parse = RowParser(columns, template, need, separator)
    form = FileForm(format, encoding, delimiter)
    name, rows = open_source(source, split, form)
    bad: list[Skipped] = []
    count = sum(1 for _ in _examples(rows, parse, check, bad))
    _check_bad(name, count, bad, skip_bad)

    def read() -> Iterator[Example]:
        again: list[Skipped] = []
        yield from _examples(open_source(source, split, form)[1], parse, check, again)
        if again and not skip_bad:  # the file has changed
            raise bad_rows(again)

    return Stream(name, count, tuple(bad), read)


def _examples(
    rows: RawRows, parse: RowParser, check: Check | None, bad: list[Skipped]
) -> Iterator[Example]:
    """The examples of the rows; the bad ones are added to `bad`."""
    for where, row in rows:
        try:
            example = Example(parse(row), where)
            if check is not None:
                check(example)
        except (BadRow, DataError) as error:
            bad.append(Skipped(where, str(error).removeprefix(f"{where}: ")))
        else:
            yield example


def _check_bad(name: str, count: int, bad: list[Skipped], skip_bad: bool) -> None:
    """Raise DataError where a source has bad rows that are not to be skipped, or no others."""
    if bad and not skip_bad:
        raise bad_rows(bad)
    if not count:
        raise no_rows(name, bad)
