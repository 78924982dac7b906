"""Parallel adapter: y + s · (U f(D x) + c) (He et al., ICLR 2022, section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.bottleneck import Bottleneck, activation
from inlay.blocks.init import kaiming
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, positive, positive_int, require_site
from inlay.core.piece import HoldsBottleneck, OutputDelta, TwoProjections
from inlay.core.site import Site, Where


@dataclass(frozen=True, repr=False)
class Parallel(Method):
    """A bottleneck beside a sub-layer: it reads what enters and adds to what comes out.

    x is the residual stream before the sub-layer, before its norm in a pre-norm base, as in
    the authors' code for mBART.

    bottleneck: M, the inner width.
    scale:      s. 1 is the parallel adapter, 4 (2 on GLUE) the paper's scaled parallel adapter.
    learned:    whether s is trained as well, from this value.
    act:        the nonlinearity.
    at:         sub-layers; the paper's best place is the feed-forward layer.
    """

    bottleneck: int = 64
    scale: float = 1.0
    learned: bool = False
    act: str = "relu"
    at: Where = Where(("mlp",))

    identity: ClassVar[bool] = True
    size: ClassVar[str] = "bottleneck"
    paper: ClassVar[str] = "He et al., ICLR 2022"
    sources: ClassVar[Mapping[str, str]] = {
        "bottleneck": "our choice, as for `Houlsby`",
        "scale": "1 is the parallel adapter; the paper's scaled one has 4, or 2 on GLUE",
        "lr": "our choice, as for `Houlsby`",
    }

    @override
    def check(self) -> None:
        positive_int(self, "bottleneck")
        positive(self, "scale")
        activation(self.act)

    @override
    def build(self, site: Site, shared: Shared) -> Beside:
        require_site(self, site, site.enter is not None, "sub-layers ('attn', 'cross', 'mlp')")
        down = kaiming(self.bottleneck, site.d_out)
        up = nn.Parameter(torch.zeros(site.d_out, self.bottleneck))
        scale = nn.Parameter(torch.tensor([self.scale])) if self.learned else self.scale
        return Beside(ScaledBottleneck(down, up, self.act, scale))


Parallel.examples = (
    Parallel(bottleneck=4),
    Parallel(bottleneck=3, scale=4.0, learned=True, at=Where(("attn", "mlp"))),
)


class ScaledBottleneck(Bottleneck):
    """`s · (U f(D x + b) + c)`, with s `[1]` where it learns."""

    def __init__(self, down: nn.Parameter, up: nn.Parameter, act: str, scale: nn.Parameter | float):
        super().__init__(down, up, act)
        self.scale = scale

    @override
    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale.to(x.dtype) if isinstance(self.scale, Tensor) else self.scale
        return scale * super().forward(x)


class Beside(HoldsBottleneck, TwoProjections, OutputDelta):
    """The scaled bottleneck. The up-projection starts at zero, so the base is what it was."""

    down = frozenset({"inner.down", "inner.down_bias"})

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return self.inner(x)
