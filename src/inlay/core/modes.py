"""Running a model without gradients and dropout, and putting its modes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import nn

_CHANGING = Lock()

_EVALUATED: dict[nn.Module, tuple[int, bool]] = {}
"""How many `with` blocks evaluate each module now, in any thread, and its mode before the first."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside; every part's mode is put back afterwards.

    Several may overlap, in several threads: the last to end puts a mode back.
    """
    parts = list(model.modules())
    with _CHANGING:
        for part in parts:
            blocks, mode = _EVALUATED.get(part, (0, part.training))
            _EVALUATED[part] = (blocks + 1, mode)
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        with _CHANGING:
            for part in parts:
                blocks, mode = _EVALUATED.pop(part)
                if blocks > 1:
                    _EVALUATED[part] = (blocks - 1, mode)
                else:
                    part.training = mode
