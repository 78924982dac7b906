"""How passes are run for looking inside: one inlay serves every row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from inlay.handle import Inlay, rows


@contextmanager
def served_alone(handle: Inlay) -> Iterator[None]:
    """Inside, every row is served by this inlay, enabled or not, and by no other."""
    enabled = handle.enabled
    handle.enabled = True
    try:
        with rows(handle.model, [handle.name]):
            yield
    finally:
        handle.enabled = enabled
