"""LayerNorm tuning: y + g ⊙ x̂ + c, only norms learn (Qi et al., 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from inlay.blocks.norm import NormTwin
from inlay.core.method import Method, Shared, require_site
from inlay.core.site import Site, Where


@dataclass(frozen=True, repr=False)
class LayerNorm(Method):
    """A change to the gain of every norm, and to its bias where it has one; of an RMSNorm too.

    at: norms: those of the sub-layers, of the embeddings, and after the last block.
    """

    at: Where = Where(
        ("norm.attn?", "norm.mixer?", "norm.cross?", "norm.mlp?", "norm.embed?", "norm.final?")
    )

    identity: ClassVar[bool] = True
    paper: ClassVar[str] = "Qi et al., 2022"
    sources: ClassVar[Mapping[str, str]] = {
        "lr": "chosen; T-Few's configuration for norms has 3e-4",
    }

    @override
    def build(self, site: Site, shared: Shared) -> NormTwin:
        require_site(self, site, site.is_norm, "norms such as 'norm.attn'")
        return NormTwin(site)


LayerNorm.examples = (LayerNorm(), LayerNorm(at=Where(("norm.mlp",), layers=(0, -1))))
