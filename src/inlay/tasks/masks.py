"""`{mask}`, the place in a template where the word of a label belongs."""

from __future__ import annotations

from inlay.data.template import Template
from inlay.errors import TaskError
from inlay.tasks.base import Bound

MASK = "{mask}"


def count_masks(template: str) -> int:
    """How often a template has `{mask}`."""
    return sum(name == "mask" for _, name in Template(template).parts)


def mask_token(bound: Bound, template: str) -> tuple[str, int]:
    """An encoder's template with its mask token for `{mask}`, and the token's id.

    Raises TaskError for several `{mask}`, or a tokenizer without a mask token.
    """
    if count_masks(template) != 1:
        raise TaskError(f"template {template!r}: an encoder needs exactly one {MASK}")
    token = bound.tokenizer.mask_token
    if token is None:
        raise TaskError(f"{MASK} needs a tokenizer with a mask token, and this one has none")
    return template.replace(MASK, token), bound.tokenizer.get_vocab()[token]
