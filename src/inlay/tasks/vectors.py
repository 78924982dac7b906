"""Vectors of 0 and 1 as the labels of a row: `[1, 0, 1]` says that the first and third apply.

A list of labels could mean the same list of names or numbers, so it is read as a vector only where
the user gives as many labels as it is long, and refused where it cannot be anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inlay.data.dataset import Example
from inlay.errors import DataError, TaskError

FLAGS = {"0": False, "1": True, "false": False, "true": True}
"""The values of a vector, as names of labels are written."""

CURE = (
    "name the labels in the order of its places (--task.by.labels), or give each row the names of "
    "its labels"
)


def labels_of_vector(
    example: Example, values: Sequence[str], given: Sequence[str] | None
) -> list[str]:
    """The labels of a row; those of a vector by their places.

    Args:
        example: the row, for messages.
        values: its labels as the data has them.
        given: the labels that the user gives, in their order; None where he gives none.

    Raises DataError for a vector without as many given labels.
    """
    labels = set(given or ())
    if len(values) < 2 or not FLAGS.keys() >= set(values) or FLAGS.keys() & labels:
        return list(values)
    if given is not None and len(given) == len(values):
        return [label for label, value in zip(given, values, strict=True) if FLAGS[value]]
    if given is not None:
        raise DataError(
            f"{example.where}: labels [{', '.join(values)}] are not names of labels, and as a "
            f"vector they are {len(values)}, not {len(given)}; if labels are numbered from 0, give "
            f"label_names={list(given)} (--task.label_names)"
        )
    if len(set(values)) < len(values):
        raise DataError(
            f"{example.where}: labels [{', '.join(values)}] are a vector with a place for each "
            f"label; {CURE}"
        )
    return list(values)


def check_no_vectors(counts: Mapping[str, int], lengths: Mapping[int, int]) -> None:
    """Raise TaskError where the labels of all rows look like vectors of one length.

    counts: how many rows have each label. lengths: how many rows have so many labels.
    """
    if FLAGS.keys() >= counts.keys() and len(lengths) == 1 and max(lengths) > 1:
        raise TaskError(
            f"classify: every row has {max(lengths)} labels of {', '.join(sorted(counts))}, so "
            f"they are vectors with a place for each label; {CURE}"
        )
