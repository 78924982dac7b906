"""Starting values of prompts from words: token ids for `Prompt(start=…)` and `Prefix(start=…)`."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from inlay.errors import SpecError

TokenGroups = tuple[tuple[int, ...], ...]
"""For each position of a prompt, the ids of the tokens whose embeddings are averaged there."""


def words(tokenizer: PreTrainedTokenizerBase, text: str) -> TokenGroups:
    """The tokens of a text, each in a group of its own: `Prompt(start=words(tokenizer, text))`.

    Flattened, `tuple(i for (i,) in words(…))`, they are the start of a `Prefix` of that length.

    Raises SpecError for a text without tokens.
    """
    return tuple((token,) for token in _encode(tokenizer, "text", text))


def labels(tokenizer: PreTrainedTokenizerBase, names: Iterable[str]) -> TokenGroups:
    """One group of tokens for each class label (Lester et al., section 3.2).

    Raises SpecError for a label without tokens.
    """
    return tuple(tuple(_encode(tokenizer, "label", name)) for name in names)


def _encode(tokenizer: PreTrainedTokenizerBase, kind: str, text: str) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise SpecError(
            f"the {kind} {text!r:.60} has no tokens; give one that this tokenizer can write"
        )
    return [int(token) for token in ids]
