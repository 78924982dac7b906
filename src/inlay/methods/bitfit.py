"""BitFit: y + δ, only biases are trained (Ben-Zaken et al., ACL 2022, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, require_site
from inlay.core.piece import Foldable, OutputDelta
from inlay.core.site import Site, Where
from inlay.errors import NoBiasError


@dataclass(frozen=True, repr=False)
class BitFit(Method):
    """A change to every bias of projections and norms.

    create: also where the base has no bias (Llama, T5), starting from zero as T-Few does. Without
            it such places are left out. A created bias cannot be merged: it has no home.
    at:     projections and norms. The paper's half-size choice is `("attn.q", "mlp.up")`.
    """

    create: bool = True
    at: Where = Where(
        (
            "attn.q",
            "attn.k",
            "attn.v",
            "attn.o",
            "cross.q?",
            "cross.k?",
            "cross.v?",
            "cross.o?",
            "mlp.gate?",
            "mlp.up",
            "mlp.down",
            "norm.attn?",
            "norm.mixer?",
            "norm.cross?",
            "norm.mlp?",
            "norm.embed?",
            "norm.final?",
        )
    )

    identity: ClassVar[bool] = True
    paper: ClassVar[str] = "Ben-Zaken et al., ACL 2022"
    sources: ClassVar[Mapping[str, str]] = {
        "create": "T-Few's way with a base that has no biases",
        "lr": "the authors' code; the paper tries 1e-4 to 1e-3",
    }

    @override
    def build(self, site: Site, shared: Shared) -> Shift | None:
        require_site(self, site, site.is_projection or site.is_norm, "projections and norms")
        return Shift(site.d_out) if self.create or site.bias() is not None else None


BitFit.examples = (BitFit(), BitFit(at=Where(("attn.q", "mlp.up"))))


class Shift(Foldable, OutputDelta):
    """`y + δ`; δ starts at zero, so the base is what it was."""

    def __init__(self, width: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(width))  # [d_out]

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return self.shift.to(y.dtype).expand_as(y)

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if b is None:
            raise NoBiasError("the base has no bias here to fold a created one into")
        return w, b + self.shift.detach()
