"""Pfeiffer adapter: LN(s + U f(D LN(s))), s = f + x (Pfeiffer et al., EACL 2021, section 3.2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.bottleneck import Bottleneck, activation
from inlay.blocks.init import normal
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, positive, positive_int, require_site
from inlay.core.piece import HoldsBottleneck, OutputDelta, Reference, TwoProjections
from inlay.core.site import Site, Where
from inlay.errors import SpecError


@dataclass(frozen=True, repr=False)
class Pfeiffer(Method):
    """One bottleneck a layer, after the feed-forward layer.

    In a post-norm base it reads the normalised sum of sub-layer and residual, and what it adds
    goes through the same frozen norm again; in a pre-norm base it reads the sum itself.

    bottleneck: M, the inner width; None means a sixteenth of the hidden width.
    std:        standard deviation of the starting weights.
    act:        the nonlinearity, "relu" as in the authors' code.
    at:         'block', the end of a layer.
    """

    bottleneck: int | None = None
    std: float = 0.02
    act: str = "relu"
    at: Where = Where(("block",))

    size: ClassVar[str] = "bottleneck"
    paper: ClassVar[str] = "Pfeiffer et al., EACL 2021"
    sources: ClassVar[Mapping[str, str]] = {
        "bottleneck": "the paper: a sixteenth of the hidden width",
        "std": "the authors' code",
        "lr": "our choice, as for `Houlsby`",
    }

    @override
    def check(self) -> None:
        if self.bottleneck is not None:
            positive_int(self, "bottleneck")
        positive(self, "std")
        activation(self.act)

    @override
    def build(self, site: Site, shared: Shared) -> Renormed:
        require_site(self, site, site.role == "block", "whole blocks ('block')")
        d = site.d_out
        m = self.bottleneck if self.bottleneck is not None else d // 16
        if m < 1:
            raise SpecError(
                f"Pfeiffer: a sixteenth of the width {d} is less than 1; give bottleneck="
            )
        down, up = normal(m, d, std=self.std), normal(d, m, std=self.std)
        return Renormed(Bottleneck(down, up, self.act), site.norm)


Pfeiffer.examples = (Pfeiffer(bottleneck=4),)


class Renormed(HoldsBottleneck, TwoProjections, OutputDelta):
    """The bottleneck; with a norm, the sum is normalised anew."""

    reads_output: ClassVar[bool] = True
    down = frozenset({"inner.down", "inner.down_bias"})

    def __init__(self, inner: nn.Module, norm: nn.Module | None):
        super().__init__()
        self.inner = inner
        self._norm = None if norm is None else Reference(norm)

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        """With a norm, x is the sum before it and y = norm(x)."""
        if self._norm is None:
            return self.inner(y)
        return self._norm.module.forward(x + self.inner(y)) - y

    @override
    def scaled(self, factor: Tensor, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        """With a norm, what is scaled is what it reads."""
        if self._norm is None:
            return factor * self.inner(y)
        return self._norm.module.forward(x + factor * self.inner(y)) - y
