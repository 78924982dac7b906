"""Cross-attention only: y + δ x + c in cross-attention, the rest frozen (Gheini et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from inlay.blocks.dense import twin
from inlay.core.method import Method, Shared
from inlay.core.piece import OutputDelta
from inlay.core.site import Site, Where


@dataclass(frozen=True, repr=False)
class CrossAttention(Method):
    """The matrices of cross-attention, their biases and the norm; an encoder-decoder only.

    The paper trains the embeddings of a new language too, without which a change of language
    fails; here embeddings stay frozen, so that it suits a new task in the languages of the base.

    at: projections and norms of cross-attention.
    """

    at: Where = Where(("cross.q", "cross.k", "cross.v", "cross.o", "norm.cross?"))

    identity: ClassVar[bool] = True
    lr: ClassVar[float] = 1e-4
    paper: ClassVar[str] = "Gheini et al., EMNLP 2021"
    sources: ClassVar[Mapping[str, str]] = {
        "lr": "chosen, as for full fine-tuning",
    }

    @override
    def build(self, site: Site, shared: Shared) -> OutputDelta:
        return twin(self, site)


CrossAttention.examples = (CrossAttention(), CrossAttention(at=Where(("cross.k", "cross.v"))))
