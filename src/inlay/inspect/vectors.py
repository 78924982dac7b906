"""The vectors, keys and values that the pieces of an inlay hold."""

from __future__ import annotations

import torch
from torch import Tensor

from inlay.core.context import PassContext
from inlay.core.piece import ExtraKV, PromptVectors, VirtualTokens
from inlay.core.site import Site
from inlay.handle import Inlay


def has_vectors(handle: Inlay) -> bool:
    """Whether an inlay has a prompt, virtual tokens or a prefix to look into."""
    kinds = (PromptVectors, VirtualTokens, ExtraKV)
    return any(isinstance(placed.piece, kinds) for placed in handle.placed)


def prompt_vectors(handle: Inlay) -> list[tuple[str, Site, Tensor]]:
    """(name, site, vectors `[P, D]` in fp32) of every prompt and of all virtual tokens.

    The name is that of the placed piece, such as `embed/0`.
    """
    handle.recompute_shared()
    return [
        (placed.name, placed.site, placed.piece().detach().float())
        for placed in handle.placed
        if isinstance(placed.piece, (PromptVectors, VirtualTokens))
    ]


def prefix_keys(handle: Inlay) -> list[tuple[str, Site, Tensor, Tensor]]:
    """(name, site, keys, values) of every prefix; keys and values are `[H, P, K]` in fp32.

    Of keys and values that depend on the input it returns those for hidden states of zeros.
    """
    handle.recompute_shared()
    prefixes = []
    for placed in handle.placed:
        if isinstance(placed.piece, ExtraKV):
            x = torch.zeros(1, 1, placed.site.d_in, device=placed.site.device())
            keys, values = placed.piece(x, PassContext())
            prefixes.append(
                (placed.name, placed.site, keys.detach().float(), values.detach().float())
            )
    return prefixes
