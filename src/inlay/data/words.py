"""Words as starting values: token ids for `Prompt(start=…)` and `Prefix(start=…)`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from inlay.errors import SpecError

Words = tuple[tuple[int, ...], ...]


def words(tokenizer: Any, text: str) -> Words:
    """The tokens of a text, one group each: `Prompt(length=n, start=words(tokenizer, text))`.

    Flattened (`tuple(i for (i,) in words(…))`) they start a `Prefix` of their number.
    Raises SpecError for a text without tokens.
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise SpecError(f"the text {text!r:.60} has no tokens")
    return tuple((int(number),) for number in ids)


def labels(tokenizer: Any, names: Iterable[str]) -> Words:
    """One group a class label, whose tokens' embeddings are averaged (Lester et al., section 3.2).

    Raises SpecError for a label without tokens.
    """
    made = []
    for name in names:
        ids = tokenizer.encode(name, add_special_tokens=False)
        if not ids:
            raise SpecError(f"the label {name!r:.60} has no tokens")
        made.append(tuple(int(number) for number in ids))
    return tuple(made)
