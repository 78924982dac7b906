"""The tiny models of `inlay.testing`, under the names that tests use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from inlay.core.piece import Piece
from inlay.core.site import Site
from inlay.handle import Inlay
from inlay.testing import FAMILIES, shared_tiny_model, tiny_model
from inlay.testing.models import DIMS, GQA, IDS, SEQ2SEQ, T5

__all__ = [
    "DIMS",
    "FAMILIES",
    "GQA",
    "IDS",
    "SEQ2SEQ",
    "T5",
    "drop_nothing",
    "fresh",
    "model",
    "pieces",
]


def fresh(family: str) -> Any:
    """A new model of a family."""
    return tiny_model(family)


def model(family: str) -> Any:
    """The model of a family that the whole session shares."""
    return shared_tiny_model(family)


def drop_nothing(model: Any) -> None:
    """No dropout from now on, in training either."""
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
        for rate in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(vars(part).get(rate), float):
                setattr(part, rate, 0.0)


def pieces(handle: Inlay) -> Iterator[tuple[str, Site, Piece]]:
    """(name, site, piece) of every piece of an inlay."""
    return ((placed.name, placed.site, placed.piece) for placed in handle.placed)
