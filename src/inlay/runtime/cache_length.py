"""The length of a cache in which prompts stand in their rows, as callers see it.

Callers count by a cache: how many tokens of a text are still to be read, at which positions they
stand, how long their mask is. A prompt is none of theirs. So outside a pass a cache says how much
text it holds, and inside a pass, where the base asks, how many positions:

    cache = model(**first_five_tokens).past_key_values      prompt of 4
    cache.get_seq_length()                                   5, and 9 inside the stack
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

METHOD = "get_seq_length"
"""The method that callers ask."""


def count_text(cache: Cache, extra: int) -> None:
    """From now on the cache leaves `extra` positions out of its length.

    A second view of the same layers is asked: a cache that holds itself is not freed with its pass.
    """
    count_positions(cache)
    setattr(cache, METHOD, partial(_text_length, copy.copy(cache), extra))


def count_positions(cache: Cache | None) -> None:
    """From now on the cache says its whole length, as its class has it."""
    if cache is not None:
        vars(cache).pop(METHOD, None)


def _text_length(cache: Cache, extra: int, layer_idx: int = 0) -> int | Tensor:
    positions: Any = type(cache).get_seq_length(cache, layer_idx)
    if isinstance(positions, Tensor):  # of a static cache, on its device
        return (positions - extra).clamp(min=0)
    return max(positions - extra, 0)
