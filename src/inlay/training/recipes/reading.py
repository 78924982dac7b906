"""Reading the base and the rows of a recipe; all of its bad rows are found before any training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inlay.data.dataset import Dataset, Skipped, bad_rows
from inlay.errors import DataError, InlayError, together
from inlay.hub import load_base
from inlay.tasks import Task
from inlay.tasks.usable import encode_usable
from inlay.training.loop.launch import processes
from inlay.training.loop.progress import ProgressDisplay, print_line
from inlay.training.recipes.recipe import Source

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Load = Callable[[str, Source], Dataset]
"""Reads the rows of a part from its source. Raises DataError."""

Drafts = Callable[[Mapping[str, Dataset]], Sequence[Task]]
"""Bound tasks that encode these rows, for nothing but to see which of them they cannot."""


def open_base(
    base: str, dtype: str | None, console: Console, quantize: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the base of a recipe and its tokenizer, with progress."""
    with ProgressDisplay(console) as display, display.counting(f"loading {base}"):
        return load_base(
            base,
            dtype=None if dtype is None else DTYPES[dtype],
            device=processes().device,
            quantize=quantize,
            report=lambda line: print_line(console, line),
        )


def read_data(
    sources: Mapping[str, Source], load: Load, drafts: Drafts, console: Console
) -> dict[str, Dataset]:
    """The rows of every part.

    Args:
        sources: by part.
        load: reads one.
        drafts: called only where rows are bad: those that are read and cannot be encoded are then
            part of the same message.
        console: where progress is shown.

    Raises DataError for all parts together.
    """
    data: dict[str, Dataset] = {}
    faults: dict[str, str] = {}
    for part, source in sources.items():
        with ProgressDisplay(console) as display, display.counting(f"reading {part}"):
            try:
                data[part] = _load(part, source, load)
            except DataError as error:
                faults[part] = str(error)
    strict = [part for part in data if not sources[part].skip_bad]
    if any(data[part].skipped for part in strict):
        bad = _bad_in_encoding(drafts, data)
        for part in strict:
            found, encoding = data[part].skipped, bad.get(part, [])
            if found or encoding:
                faults[part] = str(bad_rows(found, encoding=encoding))
    if faults:
        raise DataError(together((faults[part] for part in sources if part in faults), "the data"))
    return data


def _load(part: str, source: Source, load: Load) -> Dataset:
    """The rows of a part, with its bad ones, which may be errors, among those skipped."""
    try:
        return load(part, source.without_bad())
    except DataError:
        return load(part, source)  # where that is due to the bad rows, it names them


def _bad_in_encoding(drafts: Drafts, data: Mapping[str, Dataset]) -> dict[str, list[Skipped]]:
    """The rows of every part that some task cannot encode; none where no task can be bound."""
    try:
        tasks = drafts(data)
    except InlayError:  # raised again when these rows are mended
        return {}
    return {part: _bad(tasks, dataset) for part, dataset in data.items()}


def _bad(tasks: Sequence[Task], dataset: Dataset) -> list[Skipped]:
    bad: dict[str, Skipped] = {}
    for task in tasks:
        for row in encode_usable(task.encode_some, dataset.examples).bad:
            bad.setdefault(row.where, row)
    return list(bad.values())


def usable(
    tasks: Sequence[Task],
    data: Mapping[str, Dataset],
    skipping: Mapping[str, bool],
    console: Console,
) -> dict[str, Dataset]:
    """The data, checked before any training, without the rows that some task cannot encode.

    skipping: the parts of which such rows are left out; of others they are errors.

    Raises DataError for all parts together.
    """
    remaining: dict[str, Dataset] = {}
    faults = []
    with ProgressDisplay(console) as display:
        for part, dataset in data.items():
            with display.counting(f"checking {part}", len(dataset) * len(tasks)) as advance:
                try:
                    remaining[part] = dataset
                    for task in tasks:
                        if skipping[part]:
                            remaining[part] = task.usable(remaining[part])
                        else:
                            task.encode_all(dataset, advance)
                except DataError as error:
                    faults.append(str(error))
    if faults:
        raise DataError(together(faults, "the data"))
    return remaining
