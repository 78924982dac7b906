"""Trained heads: nothing of the base is hooked, tasks call them (see `trained_heads`)."""

from __future__ import annotations

from typing_extensions import override

from inlay.core.piece import HeadPiece, Piece
from inlay.core.site import Site
from inlay.runtime.port import Port, accepts


@accepts(HeadPiece)
class HeadPort(Port):
    """Takes heads, and does nothing with them."""

    label = "head"

    @override
    def add(self, name: str, site: Site, piece: Piece) -> None:
        pass

    @override
    def remove(self, name: str) -> None:
        pass
