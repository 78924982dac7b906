"""The rows and batches of `generate`: sources with their targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inlay.tasks.batch import Batch
from inlay.tasks.rows import Row, have_labels, padded, padded_inputs


@dataclass(frozen=True, slots=True)
class ChatRow(Row):
    """A chat up to the assistant's last turn, which is the target.

    earlier_turns: the positions in `input_ids` of what the assistant wrote before; it is learned
        too.
    """

    earlier_turns: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class GenerateBatch(Batch):
    """Sources with their targets.

    positions: where a token is predicted, in the flat `[B·T]`, `[N]`; None without targets.
    targets: the token to predict at each, `[N]`; None without targets.
    prompt_lengths: of the sources in a decoder, `[B]`; None in an encoder–decoder.
    """

    positions: Tensor | None = None
    targets: Tensor | None = None
    prompt_lengths: Tensor | None = None


def target_batch(rows: Sequence[Row], pad_id: int, decoder_start: int | None) -> GenerateBatch:
    """Rows as a batch; the last token of a target is never read, so it is no input.

    decoder_start: the token that an encoder–decoder's decoder starts with; None for a decoder.

    Raises DataError where only some of the rows have targets.
    """
    labelled = have_labels(rows)
    sources = [row.input_ids for row in rows]
    targets = [row.labels or [] for row in rows]
    lengths = None
    if decoder_start is None:
        inputs = padded_inputs(
            [[*a, *b[:-1]] for a, b in zip(sources, targets, strict=True)], pad_id
        )
        lengths = torch.tensor([len(ids) for ids in sources])
        starts, width = [len(ids) - 1 for ids in sources], inputs["input_ids"].shape[1]
    else:
        inputs = padded_inputs(sources, pad_id)
        starts, width = [0] * len(rows), max(map(len, targets))
        if labelled:
            shifted = [[decoder_start, *target[:-1]] for target in targets]
            inputs["decoder_input_ids"] = padded(shifted, pad_id)
    if not labelled:
        return GenerateBatch(inputs, prompt_lengths=lengths)
    pairs = [  # nothing but these positions meets the head
        (number * width + place, token)
        for number, (row, start) in enumerate(zip(rows, starts, strict=True))
        for place, token in (*_earlier_turns(row), *enumerate(row.labels or (), start))
    ]
    positions, tokens = torch.tensor(pairs).unbind(1)
    return GenerateBatch(inputs, positions, tokens, lengths)


def left_padded(ids: Tensor, lengths: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
    """The sources of a decoder's batch, padded on the left, and their mask, `[B, S]` each.

    Args:
        ids: sources and targets, padded on the right, `[B, T]`.
        lengths: of the sources, `[B]`.
        pad_id: the token that pads rows.
    """
    width = int(lengths.max())
    places = torch.arange(width, device=ids.device) - (width - lengths).unsqueeze(1)
    mask = (places >= 0).long()
    sources = ids[:, :width].gather(1, places.clamp(min=0))
    return sources.masked_fill(mask == 0, pad_id), mask


def _earlier_turns(row: Row) -> list[tuple[int, int]]:
    """Where in a row a token of the assistant's earlier turns is predicted, and which it is."""
    places = row.earlier_turns if isinstance(row, ChatRow) else ()
    return [(place - 1, row.input_ids[place]) for place in places if place]
