"""Data files and data sets, read into examples that know where they came from."""

from __future__ import annotations

import math
import numbers
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, overload

from inlay.data.readers import BadRow, Rows, kind_of, open_rows
from inlay.data.template import Template
from inlay.errors import DataError, nearest

Value = str | int | float | list[Any]
"""What a field may hold. A JSON or Arrow truth value stays a `bool`; only `LISTS` hold lists."""

LISTS = ("tokens", "tags", "answers", "choices", "labels", "scores", "targets", "messages")
"""The fields that are lists: of texts, numbers, lists and objects of these."""

STRICT = ("text", "text_pair", "source", "target", "label", "predicate")
"""The fields that are text or numbers wherever they stand."""

FIELDS = (*STRICT, "context", "question", *LISTS)
"""The field names that tasks read, and so the names that `columns` may map."""

BUNDLED = {
    "movie-reviews": "movie",
    "amazon-reviews": "amazon",
    "tweets": "tweets",
    "editorials": "nyt",
}
"""Data sets that come from the package index, and their folders; see `models.fetch_sentiment`."""

TOLD = 10
"""How many of the rows that were left out are named, where not all of them are."""


def label_name(value: Value) -> str:
    """A label as text: 1, 1.0 and "1" are one label, and so are true and "true"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


@dataclass(frozen=True, slots=True)
class Example:
    """One usable row.

    `fields` are its values by name: every text or number of the row, and the lists that tasks
    read, under the name its file gives it, and under our names what `columns` and `template` made.
    `where` says where the row stands: `movie.jsonl:12` is line 12, `movie.parquet#12` the twelfth
    row, both from one.
    """

    fields: Mapping[str, Value]
    where: str


@dataclass(frozen=True)
class Skipped:
    """One row that `skip_bad` left out, and why."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class Dataset(Sequence[Example]):
    """Examples in the order of their source, and the rows that had to be left out."""

    source: str
    examples: tuple[Example, ...]
    skipped: tuple[Skipped, ...] = ()

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        return self.examples[index]

    def __len__(self) -> int:
        return len(self.examples)

    def __repr__(self) -> str:
        return f"Dataset({self.source!r}: {len(self)} examples, {len(self.skipped)} skipped)"


@dataclass(frozen=True)
class Stream(Iterable[Example]):
    """Examples read from their source each time one goes through them; none is kept.

    count: how many they are. skipped: the rows that had to be left out.
    """

    source: str
    count: int
    skipped: tuple[Skipped, ...]
    again: Callable[[], Iterator[Example]] = field(repr=False, compare=False)

    def __iter__(self) -> Iterator[Example]:
        return self.again()

    def __len__(self) -> int:
        return self.count


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
            file, the first three also with `.gz` behind; a folder that holds one such file per
            split; rows in memory; `"movie-reviews"`, `"amazon-reviews"`, `"tweets"` or
            `"editorials"`, sentences labelled `positive` or `negative` that are fetched from the
            package index, with splits `train`, `dev` and `test`; or whatever
            `datasets.load_dataset` takes, as `"name"` or `"name:config"`.
        split: which part of a folder or of a `datasets` source. A single file has none.
        columns: our field name -> the source's column, such as `{"text": "review"}`. A row
            without that column is a bad row.
        template: text with `{column}` names. A string is the row's input and becomes both
            `text` and `source`; a mapping says which field each template makes.
        need: fields that every row must end up with, such as a task's `needs`.
        limit: keep a sample of at most this many rows, drawn with `seed`, in the source's order.
        shots: keep this many rows of each `label` instead, drawn and ordered likewise.
        skip_bad: collect bad rows in `Dataset.skipped` instead of refusing the source.
        seed: which sample `limit` or `shots` draws.

    A null counts as absent. A field of ours, or one that is mapped or used in a template, must be
    text or a finite number; `tokens`, `tags`, `answers`, `choices`, `labels`, `scores`, `targets`
    and `messages` may be lists of these instead, or of lists and objects of them. Other columns
    that are neither are left out of the example.

    Raises:
        DataError: the source cannot be read, holds no usable row, or (without `skip_bad`) has a
            bad row, which is named; or has fewer rows of a label than `shots`.
        FetchError: data that are to be fetched cannot be.
    """
    name, rows = _opened(source, split)
    shape = _Shape(columns or {}, template, need)
    if limit is not None and limit < 1:
        raise DataError(f"limit={limit} leaves no rows; give at least 1, or none for all")
    if shots is not None and shots < 1:
        raise DataError(f"shots={shots} leaves no rows; give at least 1, or none for all")
    if shots is not None and limit is not None:
        raise DataError("limit and shots exclude each other; give one of them")
    skipped: list[Skipped] = []
    examples = list(_usable(rows, shape, skipped if skip_bad else None))
    _need_some(name, len(examples), skipped)
    if limit is not None and limit < len(examples):
        kept = sorted(random.Random(seed).sample(range(len(examples)), limit))
        examples = [examples[index] for index in kept]
    if shots is not None:
        examples = _few(name, examples, shots, random.Random(seed))
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
    """What `load` reads with these arguments, without holding it: for more rows than fit memory.

    Every row is read once now, so that a bad one is found at once, and again each time the stream
    is gone through.

    Raises what `load` does.
    """

    def opened() -> tuple[str, Rows]:
        return _opened(source, split)

    shape = _Shape(columns or {}, template, need)
    name, rows = opened()
    skipped: list[Skipped] = []
    count = sum(1 for _ in _usable(rows, shape, skipped if skip_bad else None))
    _need_some(name, count, skipped)

    def again() -> Iterator[Example]:
        return _usable(opened()[1], shape, [] if skip_bad else None)

    return Stream(name, count, tuple(skipped), again)


def _opened(
    source: str | Path | Iterable[Mapping[str, Any]], split: str | None
) -> tuple[str, Rows]:
    """A source's name and its rows; what is bundled is fetched."""
    if isinstance(source, str) and not Path(source).exists():
        if source in BUNDLED:
            from inlay.hub.models import fetch_sentiment

            return open_rows(fetch_sentiment() / BUNDLED[source], split)
        if get_close_matches(source, BUNDLED, 1, 0.8):  # a near miss is not looked for afar
            raise DataError(f"there is no file {source}{nearest(source, BUNDLED)}")
    return open_rows(source, split)


def _usable(rows: Rows, shape: _Shape, skipped: list[Skipped] | None) -> Iterator[Example]:
    """The examples of the rows. Bad rows go to `skipped`; without it they raise DataError."""
    for where, row in rows:
        try:
            yield Example(shape(row), where)
        except BadRow as error:
            if skipped is None:
                raise DataError(f"{where}: {error}") from None
            skipped.append(Skipped(where, str(error)))


def _need_some(name: str, count: int, skipped: Sequence[Skipped]) -> None:
    if not count:
        why = f"all {len(skipped)} rows are bad, the first at {skipped[0]}" if skipped else "empty"
        raise DataError(f"{name} holds no usable row: {why}")


def _few(
    source: str, examples: Sequence[Example], shots: int, draw: random.Random
) -> list[Example]:
    """So many examples of each label, in their order."""
    places: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        if "label" not in example.fields:
            raise DataError(f"{example.where}: it has no label, and shots={shots} goes by labels")
        places.setdefault(label_name(example.fields["label"]), []).append(place)
    kept: list[int] = []
    for label, own in sorted(places.items()):
        if len(own) < shots:
            raise DataError(f"{source} has {len(own)} of label {label!r}, fewer than shots={shots}")
        kept += draw.sample(own, shots)
    return [examples[place] for place in sorted(kept)]


def left_out(skipped: Sequence[Skipped], rows: str) -> list[str]:
    """Lines that say which rows were left out and why: how many, the first ten, and the rest.

    rows: what they are of, such as "train".
    """
    if not skipped:
        return []
    count = "1 row was" if len(skipped) == 1 else f"{len(skipped)} rows were"
    lines = [f"{count} left out of {rows}:", *(f"  {one}" for one in skipped[:TOLD])]
    if len(skipped) > TOLD:
        lines.append(f"  and {len(skipped) - TOLD} more")
    return lines


# ------------------------------------------------------------------------- a row's fields


class _Shape:
    """What `columns`, `template` and `need` make of one row."""

    def __init__(
        self,
        columns: Mapping[str, str],
        template: str | Mapping[str, str] | None,
        need: Collection[str],
    ) -> None:
        if isinstance(template, str):
            template = {"text": template, "source": template}
        self.columns = columns
        self.templates = {name: Template(text) for name, text in (template or {}).items()}
        self.need = need
        for name in (*self.columns, *self.templates):
            if name not in FIELDS:
                raise DataError(f"there is no field {name!r} to fill{nearest(name, FIELDS)}")
        read = {name for made in self.templates.values() for name in made.names}
        self.strict = read.union(STRICT, columns.values(), need)
        flat = {theirs for ours, theirs in columns.items() if ours not in LISTS}
        self.lists = {columns.get(name, name) for name in LISTS} - flat - read

    def __call__(self, row: Any) -> dict[str, Value]:
        """The fields of an example. Raises BadRow."""
        if isinstance(row, BadRow):
            raise row
        if not isinstance(row, Mapping):
            raise BadRow(f"expected an object of columns, found {kind_of(row)}")
        fields: dict[str, Value] = {}
        for name, given in row.items():
            value, problem = _listed(given) if name in self.lists else _scalar(given)
            if problem is None:
                assert value is not None
                fields[name] = value
            elif given is not None and (name in self.strict or isinstance(given, str)):
                raise BadRow(f"column {name!r} {problem}")
        made = {ours: self._get(fields, row, theirs) for ours, theirs in self.columns.items()}
        fields |= made
        for name, template in self.templates.items():
            values = {read: self._get(fields, row, read) for read in template.names}
            made[name] = template.fill(values)
        fields |= made
        for name in self.need:
            self._get(fields, row, name)
        return fields

    @staticmethod
    def _get(fields: Mapping[str, Value], row: Mapping, name: str) -> Value:
        if name in fields:
            return fields[name]
        if name in row:
            raise BadRow(f"column {name!r} is null")
        raise BadRow(f"there is no column {name!r}{nearest(name, map(str, row))}")


def _listed(value: object) -> tuple[Value | None, str | None]:
    """The value, which may be a list, made of plain lists and objects; or what is wrong with it."""
    if not isinstance(value, list | tuple):
        return _scalar(value)
    made: list[Any] = []
    for number, item in enumerate(value, 1):
        one, problem = _item(item)
        if problem is not None:
            return None, f"holds a bad value: item {number} {problem}"
        made.append(one)
    return made, None


def _item(value: object) -> tuple[Any, str | None]:
    """What stands in a list: a text, a number, a list, or an object of these."""
    if not isinstance(value, Mapping):
        return _listed(value)
    made: dict[str, Any] = {}
    for name, inner in value.items():
        if inner is None:
            continue
        made[str(name)], problem = _item(inner)
        if problem is not None:
            return None, problem
    return made, None


def _scalar(value: object) -> tuple[Value | None, str | None]:
    """The value as text or number, or what is wrong with it."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return None, "is not valid UTF-8 text"
        return value, None
    if isinstance(value, bool | int):
        return value, None
    if isinstance(value, numbers.Integral):
        return int(value), None
    if isinstance(value, numbers.Real):
        number = float(value)
        return (number, None) if math.isfinite(number) else (None, f"is {number}, not a number")
    return None, f"is {kind_of(value)}, not text or a number"
