"""Samples of examples: at most so many in all, or so many of each label."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from inlay.data.dataset import Example
from inlay.data.labels import label_name
from inlay.errors import DataError


def check_sizes(limit: int | None, shots: int | None) -> None:
    """Raise DataError for sizes of a sample that `load` cannot draw."""
    for name, size in (("limit", limit), ("shots", shots)):
        if size is not None and size < 1:
            raise DataError(f"{name}={size} leaves no rows; give at least 1, or none for all")
    if limit is not None and shots is not None:
        raise DataError("limit and shots exclude each other; give one of them")


def sample(examples: list[Example], limit: int, seed: int) -> list[Example]:
    """At most `limit` examples, drawn at random and left in their order."""
    if limit >= len(examples):
        return examples
    drawn = Random(seed).sample(range(len(examples)), limit)
    return [examples[index] for index in sorted(drawn)]


def sample_per_label(
    source: str, examples: Sequence[Example], shots: int, seed: int
) -> list[Example]:
    """`shots` examples of each label, drawn at random and left in their order.

    source: the name of where they come from, for messages.

    Raises DataError where an example has no label, or a label has fewer examples than `shots`.
    """
    by_label: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        if "label" not in example.fields:
            raise DataError(
                f"{example.where}: shots={shots} needs rows with a label, and this one has none; "
                "map a column to it with columns, or use limit"
            )
        by_label.setdefault(label_name(example.fields["label"]), []).append(index)
    random = Random(seed)
    drawn: list[int] = []
    for label, indices in sorted(by_label.items()):
        if len(indices) < shots:
            raise DataError(
                f"{source} has only {len(indices)} rows of label {label!r} for shots={shots}; "
                "lower shots or add rows"
            )
        drawn += random.sample(indices, shots)
    return [examples[index] for index in sorted(drawn)]
