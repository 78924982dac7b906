"""PassContext: what a piece may know of the forward pass in which it acts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from inlay.errors import SpecError


@dataclass(frozen=True)
class PassContext:
    """The forward pass under way, as the rows that a piece serves see it.

    mask:   `[B, S]`, 1 where a position holds text or a prompt, 0 where it is padding. The last T
            columns are the positions of x; S - T of them are in the cache already. None where the
            pass has no padding mask, or not one of two dimensions.
    cached: how many positions are in the cache already; 0 in training.
    cache:  the cache of the pass, for pieces with a cache of their own; None without one.
    seed:   what random draws start from; None unless a piece of the pass declares `draws = True`.

    The same context is used again when a checkpointed block is recomputed in backward.
    """

    mask: Tensor | None = None
    cached: int = 0
    cache: Cache | None = None
    seed: int | None = None

    def generator(self, *key: object) -> torch.Generator:
        """A CPU random generator for the draw called `key`.

        Equal keys give equal draws within one pass: in the block and in its recomputation, and
        for every group of rows. Put the site's name into the key for draws that differ from layer
        to layer. Raises SpecError where the piece does not declare `draws = True`.
        """
        if self.seed is None:
            raise SpecError("a piece that draws random numbers must declare draws = True")
        digest = hashlib.sha256(repr((self.seed, *key)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def of(self, x: Tensor) -> PassContext:
        """The context for a module that reads x `[B', …]`: without a mask where B' is not B."""
        mismatch = self.mask is not None and len(self.mask) != len(x)
        return replace(self, mask=None) if mismatch else self

    def rows(self, start: int, stop: int) -> PassContext:
        """The context of the rows from `start` to before `stop`."""
        return self if self.mask is None else replace(self, mask=self.mask[start:stop])

    def select(self, index: Tensor) -> PassContext:
        """The context of the rows with these indices, `[b]`."""
        return (
            self if self.mask is None else replace(self, mask=self.mask[index.to(self.mask.device)])
        )
