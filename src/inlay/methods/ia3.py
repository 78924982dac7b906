"""(IA)³: l_k ⊙ K, l_v ⊙ V, W₂ (l_ff ⊙ f(W₁ x)) (Liu et al., NeurIPS 2022, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, require_site
from inlay.core.piece import Foldable, InputMap, OutputDelta
from inlay.core.site import Site, Where


@dataclass(frozen=True, repr=False)
class IA3(Method):
    """Learned factors on keys, values and the inner feed-forward activation.

    at: projections. `mlp.down` is scaled at its input, every other one at its output. Every
        expert of a mixture has factors of its own.
    """

    at: Where = Where(("attn.k", "attn.v", "cross.k?", "cross.v?", "mlp.down"))

    identity: ClassVar[bool] = True
    lr: ClassVar[float] = 3e-3
    paper: ClassVar[str] = "Liu et al., NeurIPS 2022"
    sources: ClassVar[Mapping[str, str]] = {
        "lr": "the authors' code",
    }

    @override
    def build(self, site: Site, shared: Shared) -> OutputDelta | InputMap:
        require_site(self, site, site.is_projection, "projections such as 'attn.k'")
        return ScaleIn(site.d_in) if site.plain_role == "mlp.down" else ScaleOut(site.d_out)


IA3.examples = (IA3(),)


class ScaleOut(Foldable, OutputDelta):
    """`y ⊙ l`; l starts at one, so the base is what it was."""

    reads_output: ClassVar[bool] = True

    def __init__(self, width: int):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(width))  # [d_out]

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return y * (self.factor - 1).to(y.dtype)

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The bias is scaled too."""
        factor = self.factor.detach()
        return w * factor[:, None], None if b is None else b * factor


class ScaleIn(Foldable, InputMap):
    """`x ⊙ l`."""

    def __init__(self, width: int):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(width))  # [d_in]

    @override
    def forward(self, x: Tensor, context: PassContext) -> Tensor:
        return x * self.factor.to(x.dtype)

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return w * self.factor.detach(), b
