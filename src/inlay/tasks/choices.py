"""The choices of a `choose` example, as rows and as a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from inlay.data.dataset import Example
from inlay.data.raw import kind_of
from inlay.errors import DataError
from inlay.tasks.batch import Batch
from inlay.tasks.reader import Encoded
from inlay.tasks.rows import Row, field_of, list_of, padded, padded_inputs


@dataclass(frozen=True, slots=True)
class ChoiceRow(Row):
    """A row of k texts.

    texts: what the model reads, one text for each choice.
    targets: the tokens of each choice; empty where a head decides.
    """

    texts: tuple[Encoded, ...] = ()
    targets: tuple[list[int], ...] = ()


@dataclass(frozen=True, eq=False)
class ChoiceTokens(Batch):
    """The tokens of choices that a language model scores.

    inputs: of all texts, `[B·K, T]`.
    positions: where a token of a choice is predicted, in the flat `[B·K·T]`, `[N]`.
    targets: that token, `[N]`.
    owners: the text that the token belongs to, `[N]`.
    """

    positions: Tensor
    targets: Tensor
    owners: Tensor


@dataclass(frozen=True, eq=False)
class ChooseBatch(Batch):
    """The texts of all rows, `[B·K, T]`, with K texts for every row.

    K is that of the row with most choices; a row with fewer repeats its first choice.

    counts: how many choices each row has, `[B]`.
    labels: the number of the right choice, `[B]`; None where the rows have none.
    tokens: of the choices; None where a head decides.
    """

    counts: Tensor
    labels: Tensor | None = None
    tokens: ChoiceTokens | None = None

    @override
    def __len__(self) -> int:
        return len(self.counts)


def choices_of(example: Example, fields: tuple[str, ...] | None) -> list[str]:
    """The choices of an example, k ≥ 2 texts.

    fields: the fields that hold one choice each; None for the list `choices`.

    Raises DataError, which names the example.
    """
    choices: list[Any]
    if fields is None:
        choices = list_of(example, "choices")
    else:
        choices = [field_of(example, name) for name in fields]
    if len(choices) < 2:
        raise DataError(f"{example.where}: it has {len(choices)} choices; a row needs at least 2")
    for number, choice in enumerate(choices):
        if not isinstance(choice, str | int | float):
            raise DataError(f"{example.where}: choice {number} is {kind_of(choice)}, not a text")
        if not str(choice).strip():
            raise DataError(f"{example.where}: choice {number} is empty")
    return [str(choice) for choice in choices]


def gold_choice(example: Example, choices: Sequence[str]) -> int:
    """The number of the right choice, from 0 on. Raises DataError, which names the example."""
    label = field_of(example, "label")
    if isinstance(label, str) and label in choices:
        return choices.index(label)
    try:
        number = int(label) if not isinstance(label, bool) else -1
    except ValueError:
        number = -1
    if not 0 <= number < len(choices) or (not isinstance(label, str) and number != label):
        raise DataError(
            f"{example.where}: label {label!r:.80} is none of its choices, neither as a text nor "
            f"as a number from 0 to {len(choices) - 1}"
        )
    return number


def filled(parts: Sequence[Any], count: int) -> list[Any]:
    """`count` parts: these, then copies of the first one; none where there are none."""
    return [*parts, *[parts[0]] * (count - len(parts))] if parts else []


def choice_tokens(
    premises: Sequence[list[int]],
    targets: Sequence[list[int]],
    pad_id: int,
    decoder_start: int | None,
) -> ChoiceTokens:
    """Premises `[B·K]` with the choices that continue them; a choice's last token is no input.

    decoder_start: the token that an encoder–decoder's decoder starts with; None for a decoder.
    """
    if decoder_start is None:
        texts = [[*a, *b[:-1]] for a, b in zip(premises, targets, strict=True)]
        inputs = padded_inputs(texts, pad_id)
        starts, width = [len(ids) - 1 for ids in premises], inputs["input_ids"].shape[1]
    else:
        inputs = padded_inputs(premises, pad_id)
        shifted = [[decoder_start, *target[:-1]] for target in targets]
        inputs["decoder_input_ids"] = padded(shifted, pad_id)
        starts, width = [0] * len(targets), inputs["decoder_input_ids"].shape[1]
    lengths = torch.tensor([len(target) for target in targets])
    positions = torch.cat(
        [
            torch.arange(len(target)) + number * width + start
            for number, (start, target) in enumerate(zip(starts, targets, strict=True))
        ]
    )
    return ChoiceTokens(
        inputs,
        positions,
        torch.tensor([token for target in targets for token in target]),
        torch.arange(len(targets)).repeat_interleave(lengths),
    )
