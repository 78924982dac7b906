"""Texts as batches of token ids, to measure attention on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from inlay.errors import DataError
from inlay.handle import Inlay

MAX_TOKENS = 256
"""Texts are cut after so many tokens: eager attention keeps a weight for every pair of them."""

TEXTS = (
    "The film was far too long, but nobody in the audience wanted it to end.",
    "Water boils at a lower temperature in the mountains, because the air is thinner there.",
    "She asked him twice where he had left the keys, and twice he said that he did not know.",
    "The court has to decide by Friday whether the contract of 2019 still holds.",
)
"""Texts for users who give none of their own."""


def max_tokens(handle: Inlay) -> int:
    """How many tokens of a row are read: `MAX_TOKENS`, or fewer where the base's positions end."""
    limit = handle.chart.max_length(handle.model) or MAX_TOKENS
    return max(1, min(MAX_TOKENS, limit - handle.text_start))


def text_batches(
    handle: Inlay,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    targets: Sequence[str] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Texts as batches for `attention_shares`, tokenised as the tokenizer does it by default.

    targets: for the decoder of an encoder–decoder, one per text; None takes the texts themselves.

    Raises DataError for a text without tokens.
    """
    sources = [tokenizer(text)["input_ids"] for text in texts]
    target_ids = None if targets is None else [tokenizer(text)["input_ids"] for text in targets]
    return token_batches(handle, sources, target_ids, pad=tokenizer.pad_token_id or 0)


def token_batches(
    handle: Inlay,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]] | None = None,
    *,
    pad: int = 0,
    size: int = 8,
) -> Iterator[dict[str, Tensor]]:
    """Token ids as batches for `attention_shares`, padded on the right.

    sources: the ids of each row, which are cut after `max_tokens`.
    targets: the ids for the decoder of an encoder–decoder, which reads them after its start token;
        None takes the sources.
    pad: the id to pad with. size: rows in a batch.

    Yields `input_ids` and `attention_mask`, each `[B, T]`, and for an encoder–decoder
    `decoder_input_ids` and `decoder_attention_mask` too.

    Raises DataError for a row without tokens.
    """
    chart = handle.chart
    longest = max_tokens(handle)
    sides = {"": sources}
    if chart.kind == "encoder-decoder":
        sides["decoder_"] = sources if targets is None else targets
    for first in range(0, len(sources), size):
        batch: dict[str, Tensor] = {}
        for side, rows in sides.items():
            ids = [list(row)[:longest] for row in rows[first : first + size]]
            if not all(ids):
                raise DataError("a text has no tokens; give one with words in it")
            if side:
                start = chart.base.config.decoder_start_token_id
                ids = [[start, *row[:-1]] for row in ids]
            width = max(map(len, ids))
            padded = [row + [pad] * (width - len(row)) for row in ids]
            mask = [[1] * len(row) + [0] * (width - len(row)) for row in ids]
            batch[f"{side}input_ids"] = torch.tensor(padded, device=handle.model.device)
            batch[f"{side}attention_mask"] = torch.tensor(mask, device=handle.model.device)
        yield batch
