"""The special tokens that a tokenizer adds around a text."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer adds before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    starts = range(len(full) - len(bare) + 1)
    start = next(start for start in starts if full[start : start + len(bare)] == bare)
    return full[:start], full[start + len(bare) :]


def count_trailing(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many special tokens the tokenizer adds after a text."""
    return len(special_tokens_around(tokenizer)[1])
