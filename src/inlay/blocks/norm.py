"""A trained change to the gain and bias of a norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.core.context import PassContext
from inlay.core.piece import Foldable, OutputDelta
from inlay.core.site import Site


class NormTwin(Foldable, OutputDelta):
    """`y + g ⊙ x̂ + c`: a zeroed twin of a norm's gain, and of its bias where it has one."""

    def __init__(self, site: Site):
        super().__init__()
        self.normalised = site.normalised()
        self.gain = nn.Parameter(torch.zeros(site.d_out))  # [D]
        self.bias = nn.Parameter(torch.zeros(site.d_out)) if site.bias() is not None else None

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        delta = self.normalised(x) * self.gain.to(x.dtype)
        return delta if self.bias is None else delta + self.bias.to(x.dtype)

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """w is the norm's gain, `[D]`."""
        return (
            w + self.gain.detach(),
            b if self.bias is None or b is None else b + self.bias.detach(),
        )
