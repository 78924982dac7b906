"""Houlsby adapter: y + U f(D y), twice a layer (Houlsby et al., ICML 2019, section 2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.bottleneck import Bottleneck, activation
from inlay.blocks.init import normal
from inlay.blocks.norm import NormTwin
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, positive, positive_int, require_site
from inlay.core.piece import HoldsBottleneck, OutputDelta, TwoProjections
from inlay.core.site import Site, Where


@dataclass(frozen=True, repr=False)
class Houlsby(Method):
    """A residual bottleneck after attention and after the feed-forward layer, and trained norms.

    bottleneck: M, the inner width. 64, the paper's fixed size for all tasks.
    std:        standard deviation of the starting weights (truncated at 2): small, so that the
                model starts near the base.
    act:        the nonlinearity, "gelu" as in the authors' code.
    at:         sub-layers get a bottleneck, norms a twin of their gain and bias (the paper trains
                every LayerNorm). `at=("attn", "mlp")` leaves the norms out.
    """

    bottleneck: int = 64
    std: float = 1e-3
    act: str = "gelu"
    at: Where = Where(
        (
            "attn",
            "mlp",
            "norm.attn?",
            "norm.mixer?",
            "norm.cross?",
            "norm.mlp?",
            "norm.embed?",
            "norm.final?",
        )
    )

    size: ClassVar[str] = "bottleneck"
    paper: ClassVar[str] = "Houlsby et al., ICML 2019"
    sources: ClassVar[Mapping[str, str]] = {
        "bottleneck": "the paper's fixed size for all tasks",
        "std": "the authors' code",
        "lr": "our choice; the authors' example has 3e-4",
    }

    @override
    def check(self) -> None:
        positive_int(self, "bottleneck")
        positive(self, "std")
        activation(self.act)

    @override
    def build(self, site: Site, shared: Shared) -> OutputDelta:
        if site.is_norm:
            return NormTwin(site)
        require_site(
            self, site, site.enter is not None, "sub-layers ('attn', 'cross', 'mlp') and norms"
        )
        d, m = site.d_out, self.bottleneck
        down, up = normal(m, d, std=self.std, cut=2), normal(d, m, std=self.std, cut=2)
        return Sequential(Bottleneck(down, up, self.act))


Houlsby.examples = (
    Houlsby(bottleneck=4, std=0.02),
    Houlsby(bottleneck=3, std=0.1, at=Where(("attn", "mlp"))),
)


class Sequential(HoldsBottleneck, TwoProjections, OutputDelta):
    """The bottleneck and its own residual, reading the sub-layer's output."""

    reads_output: ClassVar[bool] = True
    down = frozenset({"inner.down", "inner.down_bias"})

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return self.inner(y)
