"""The state of every random number generator that training may draw from, as JSON."""

from __future__ import annotations

import base64
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def seed(number: int) -> None:
    """Start every generator anew."""
    random.seed(number)
    torch.manual_seed(number)  # of every device
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(number)


def capture() -> dict[str, Any]:
    """The states of torch (CPU and CUDA), Python and, where it is imported, numpy."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": _text(torch.get_rng_state()),
        "cuda": [_text(one) for one in _cuda()],
        "python": [version, list(words), gauss],
    }
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, place, has, cached = numpy.random.get_state()
        state["numpy"] = [kind, keys.tolist(), place, has, cached]
    return state


def restore(state: dict[str, Any]) -> None:
    """Go on from what `capture` returned."""
    torch.set_rng_state(_tensor(state["torch"]))
    if state["cuda"]:
        torch.cuda.set_rng_state_all([_tensor(one) for one in state["cuda"]])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    if "numpy" in state:
        import numpy

        kind, keys, *rest = state["numpy"]
        numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))


@contextmanager
def kept() -> Iterator[None]:
    """Whatever is drawn inside, outside the generators go on as if nothing had been."""
    before = capture()
    try:
        yield
    finally:
        restore(before)


def _cuda() -> list[Tensor]:
    """The states of all GPUs; none where nothing has used one yet."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _text(state: Tensor) -> str:
    return base64.b64encode(bytes(state.tolist())).decode()


def _tensor(text: str) -> Tensor:
    return torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
