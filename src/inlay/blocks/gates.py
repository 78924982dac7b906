"""Gates: factors on what a method changes, from nothing or from the text itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.bottleneck import linear
from inlay.blocks.init import normal
from inlay.core.context import PassContext
from inlay.core.piece import Piece
from inlay.core.site import Site
from inlay.errors import PortError

STD = 0.02
"""Standard deviation of the weights of a gate at the start, as in the authors' code."""


class ScalarGate(nn.Module):
    """One number, whatever the input."""

    def __init__(self, start: float):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([float(start)]))  # [1]

    @override
    def forward(self, x: Tensor, owner: Piece, context: PassContext) -> Tensor:
        """-> g `[1]`."""
        return self.value


class InputGate(nn.Module):
    """`mean of σ(x w + b)` over the text of a row, in a decoder up to each position.

    width: D, of what it reads. for_keys: whether it scales keys that all positions share.
    """

    def __init__(self, site: Site, width: int, *, for_keys: bool):
        super().__init__()
        causal = site.stack == "decoder" and site.role not in ("cross.k", "cross.v")
        self.over = "text" if not causal else "nothing" if for_keys else "text so far"
        reads = self.over != "nothing"
        self.weight = normal(width, std=STD) if reads else None  # [D]
        self.bias = nn.Parameter(torch.zeros(1))

    @override
    def forward(self, x: Tensor, owner: Piece, context: PassContext) -> Tensor:
        """x `[B, T, D]` -> g `[B, 1, 1]`, or `[B, T, 1]` in a decoder; `[1]` for its keys.

        owner: the piece, under whose name earlier positions are kept in the cache.
        """
        if self.weight is None:
            return self.bias.sigmoid()
        if x.dim() != 3:
            raise PortError(
                f"a gate that reads its input takes the mean over the positions of rows, and is "
                f'given {list(x.shape)}; use reads="nothing", or other places by at='
            )
        scores = linear(x, self.weight[None], self.bias).sigmoid()  # [B, T, 1]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))  # for sums
        length = x.shape[1]
        if self.over == "text so far":
            kept, _ = context.append_to_cache(owner, scores[:, None], scores[:, None, :, :0])
            scores = kept[:, 0]
        text = torch.ones_like(scores)
        if context.mask is not None and context.mask.shape[1] >= scores.shape[1]:
            text = context.mask[:, -scores.shape[1] :, None].to(scores.dtype)
        if self.over == "text":
            return (scores * text).sum(1, keepdim=True) / text.sum(1, keepdim=True).clamp(min=1)
        return ((scores * text).cumsum(1) / text.cumsum(1).clamp(min=1))[:, -length:]
