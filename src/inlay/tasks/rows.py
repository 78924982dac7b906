"""Row, one encoded example, and helpers that read examples and pad rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inlay.data.dataset import Example, Value
from inlay.data.raw import kind_of
from inlay.errors import DataError, nearest


@dataclass(frozen=True, slots=True)
class Row:
    """One encoded example, or one window of a long example.

    input_ids: the tokens of the input, without padding.
    labels: what the row teaches: the tokens of the target with the end token last, the numbers of
        its labels, a score for every label, or a value; None where the example has no target.
    index: the position of the example in its data set.
    where: the file and line of the example, for messages.
    cost: how many tokens the row puts through the model.
    token_type_ids: which of two texts each token belongs to, where the model reads that.
    """

    input_ids: list[int]
    labels: list[Any] | None
    index: int
    where: str
    cost: int
    token_type_ids: list[int] | None = None

    def __len__(self) -> int:
        return self.cost


def field_of(example: Example, name: str) -> str | int | float:
    """A field that holds a text or a number.

    Raises DataError, which names the example, where the field is missing or a list.
    """
    value = _value_of(example, name)
    if isinstance(value, list):
        raise DataError(f"{example.where}: field {name!r} is a list, not text or a number")
    return value


def list_of(example: Example, name: str) -> list[Any]:
    """A field that holds a list.

    Raises DataError, which names the example, where the field is missing or no list.
    """
    value = _value_of(example, name)
    if not isinstance(value, list):
        raise DataError(
            f"{example.where}: field {name!r} is {kind_of(value)}, not a list; where a cell holds "
            "several items, name what separates them, such as separator='|'"
        )
    return value


def texts_of(example: Example, name: str) -> list[str]:
    """A field that holds one text or a list of texts, as a list.

    Raises DataError, which names the example, where the field is missing, an empty list, or a list
    of anything else.
    """
    value = _value_of(example, name)
    if not isinstance(value, list):
        return [str(value)]
    if not value or not all(isinstance(text, str) for text in value):
        raise DataError(
            f"{example.where}: {name} must be a list of at least one text, not {value!r:.80}"
        )
    return value


def _value_of(example: Example, name: str) -> Value:
    try:
        return example.fields[name]
    except KeyError:
        known = nearest(name, example.fields)
        raise DataError(f"{example.where}: there is no field {name!r}{known}") from None


def have_labels(rows: Sequence[Row]) -> bool:
    """Whether these rows have labels: all of them, or none.

    Raises DataError where only some have.
    """
    without = [row for row in rows if row.labels is None]
    if without and len(without) < len(rows):
        raise DataError(f"{without[0].where}: it has no label or target, and other rows have one")
    return not without


def require_labels(labels: Tensor | None) -> Tensor:
    """The labels of a batch. Raises DataError where its rows had none."""
    if labels is None:
        raise DataError("the rows have no label or target to learn from")
    return labels


def padded(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
    """Sequences as one tensor `[B, longest]`, padded with `value` on the right."""
    width = max(map(len, sequences))
    return torch.tensor([[*ids, *[value] * (width - len(ids))] for ids in sequences])


def mask_of(sequences: Sequence[Sequence[int]]) -> Tensor:
    """The attention mask of `padded` sequences: 1 for a token, 0 for padding, `[B, longest]`."""
    lengths = torch.tensor([len(ids) for ids in sequences])
    return (torch.arange(int(lengths.max())) < lengths.unsqueeze(1)).long()


def padded_inputs(sequences: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Token ids padded on the right, and their mask, as the inputs of a model."""
    return {"input_ids": padded(sequences, pad_id), "attention_mask": mask_of(sequences)}
