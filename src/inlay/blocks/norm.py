"""A trained change to the gain and bias of a norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inlay.core.piece import Foldable, OutputDelta
from inlay.core.site import Site


class NormTwin(Foldable, OutputDelta):
    """`y + g ⊙ x̂ + c`: a zeroed twin of a norm's gain, and of its bias where it has one."""

    def __init__(self, site: Site):
        super().__init__()
        self.normalised = site.normalised()
        self.gain = nn.Parameter(torch.zeros(site.d_out))  # [D]
        self.bias = nn.Parameter(torch.zeros(site.d_out)) if site.bias() is not None else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """See `OutputDelta`."""
        y = y + self.normalised(x) * self.gain.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See `Foldable`: w is the norm's gain, `[D]`."""
        return (
            w + self.gain.detach(),
            b if self.bias is None or b is None else b + self.bias.detach(),
        )
