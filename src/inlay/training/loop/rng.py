"""The state of every random number generator that training may draw from, as JSON."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor


def seed(number: int) -> None:
    """Seed every generator."""
    random.seed(number)
    torch.manual_seed(number)  # of every device
    numpy.random.seed(number)


def capture() -> dict[str, Any]:
    """The states of the generators of torch (CPU and CUDA), Python and numpy."""
    version, words, gauss = random.getstate()
    numpy_state: Any = numpy.random.get_state()
    kind, keys, position, has_gauss, cached = numpy_state
    return {
        "torch": _to_text(torch.get_rng_state()),
        "cuda": [_to_text(state) for state in _cuda_states()],
        "python": [version, list(words), gauss],
        "numpy": [kind, keys.tolist(), position, has_gauss, cached],
    }


def restore(state: dict[str, Any]) -> None:
    """Set the generators to the states that `capture` returned."""
    torch.set_rng_state(_from_text(state["torch"]))
    if state["cuda"]:
        torch.cuda.set_rng_state_all([_from_text(text) for text in state["cuda"]])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))


@contextmanager
def preserved() -> Iterator[None]:
    """Put the generators' states back at the end of the `with` block."""
    before = capture()
    try:
        yield
    finally:
        restore(before)


def _cuda_states() -> list[Tensor]:
    """The states of all GPUs; none where no GPU was used yet."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _to_text(state: Tensor) -> str:
    return base64.b64encode(bytes(state.tolist())).decode()


def _from_text(text: str) -> Tensor:
    return torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
