"""The base's own task head, trained and saved with the inlay: y + (W - W₀) x + (b - b₀).

W and b are what the file holds, W₀ and b₀ the base's own, which stay as they are. So a file brings
its head along whatever the head of the base that it is loaded into started from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, Spec
from inlay.core.piece import Foldable, OutputDelta
from inlay.core.site import Site, Where
from inlay.errors import SiteError, nearest


@dataclass(frozen=True, repr=False)
class BaseHead(Method):
    """The layers of a `...ForSequenceClassification` base, or its like, after the backbone.

    `attach` adds it by itself where loading found no weights for such layers ("newly initialized"):
    nothing else would train them, and no file would hold them.

    parts: paths of the layers in the base, such as "classifier"; None for all of them.
    at:    'base_head'.
    """

    parts: tuple[str, ...] | None = None
    at: Where = Where(("base_head",))

    identity: ClassVar[bool] = True
    lr: ClassVar[float] = 1e-3
    sources: ClassVar[Mapping[str, str]] = {
        "parts": "those that were never trained, where attach adds it",
        "lr": "chosen",
    }

    @override
    def build(self, site: Site, shared: Shared) -> OwnWeights | None:
        paths = [base_head_path(other) for other in shared.sites]
        for part in self.parts or ():
            if part not in paths:
                raise SiteError(f"this model's own head has no {part!r}{nearest(part, paths)}")
        if self.parts is not None and base_head_path(site) not in self.parts:
            return None
        return OwnWeights(site)


BaseHead.examples = (BaseHead(),)


class OwnWeights(Foldable, OutputDelta):
    """All weights of a projection or a norm, beginning as the base's."""

    brings_weights: ClassVar[bool] = True

    def __init__(self, site: Site):
        super().__init__()
        self._site = site
        self.weight = nn.Parameter(site.weight().detach().float().clone())  # [d_out, d_in], [D]
        bias = site.bias()
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone())  # [d_out]

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        weight, bias = (None if t is None else t.to(x.dtype) for t in self._changes())
        assert weight is not None
        if self._site.is_projection:
            return F.linear(x, weight, bias)
        delta = self._site.normalised()(x) * weight
        return delta if bias is None else delta + bias

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        weight, bias = (None if t is None else t.detach() for t in self._changes())
        assert weight is not None
        return w + weight, b if b is None or bias is None else b + bias

    def _changes(self) -> tuple[Tensor, Tensor | None]:
        """What the weights differ from the base's by, in fp32."""
        with torch.no_grad():
            weight, bias = self._site.weight().float(), self._site.bias()
        if self.bias is None or bias is None:
            return self.weight - weight, None
        return self.weight - weight, self.bias - bias.detach().float()


def with_base_head(spec: Spec, parts: tuple[str, ...]) -> Spec:
    """The spec, and `BaseHead` for parts that it would leave untrained.

    A spec with a trained head does not need the base's, which its task never runs.
    """
    if not parts or any(method.has_head or isinstance(method, BaseHead) for method in spec.methods):
        return spec
    return spec + BaseHead(parts=parts)


def base_head_path(site: Site) -> str:
    """The path in the base of a layer of its own head."""
    return site.name.removesuffix(".base_head")
