"""The length of a cache in which prompts stand in their rows, as callers see it.

Callers count by a cache: how many tokens of a text are still to be read, at which positions they
stand, how long their mask is. A prompt is none of theirs. So outside a pass a cache says how much
text it holds, and inside a pass, where the base asks, how many positions:

    cache = model(**first_five_tokens).past_key_values      prompt of 4
    cache.get_seq_length()                                   5, and 9 inside the stack
"""

from __future__ import annotations

import copy

from torch import Tensor
from transformers.cache_utils import Cache

METHOD = "get_seq_length"
"""The method that callers ask."""


class TextLength:
    """Answers in the place of a cache's own method.

    view: a second view of the cache's layers, which is asked for their length: a cache that holds
    itself is not freed with its pass. extra: how many positions hold no text. inside: whether a
    pass is under way, which is told the whole length.
    """

    def __init__(self, view: Cache, extra: int):
        self.view = view
        self.extra = extra
        self.inside = False

    def __call__(self, layer_idx: int = 0) -> int | Tensor:
        """The length of a layer."""
        positions: int | Tensor = type(self.view).get_seq_length(self.view, layer_idx)
        if self.inside:
            return positions
        if isinstance(positions, Tensor):  # of a static cache, on its device
            return (positions - self.extra).clamp(min=0)
        return max(positions - self.extra, 0)


def count_text(cache: Cache, extra: int) -> None:
    """From now on the cache leaves `extra` positions out of its length."""
    length = vars(cache).get(METHOD)
    if not isinstance(length, TextLength):
        length = TextLength(copy.copy(cache), extra)
        setattr(cache, METHOD, length)
    length.extra, length.inside = extra, False


def count_positions(cache: Cache | None) -> None:
    """From now on, until `count_text`, the cache says its whole length, as its class has it."""
    length = None if cache is None else vars(cache).get(METHOD)
    if isinstance(length, TextLength):
        length.inside = True
