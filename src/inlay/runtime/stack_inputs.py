"""What the inputs of a stack's pass say, in whichever form they were given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache


def text_of(inputs: Mapping[str, Any]) -> Tensor | None:
    """The text of a pass, ids `[B, T]` or embeddings `[B, T, D]`; None where there is none."""
    given = inputs.get("input_ids")
    return inputs.get("inputs_embeds") if given is None else given


def cached(inputs: Mapping[str, Any]) -> int:
    """How many positions the cache of a pass holds already."""
    cache = inputs.get("past_key_values")
    return int(cache.get_seq_length()) if isinstance(cache, Cache) else 0
