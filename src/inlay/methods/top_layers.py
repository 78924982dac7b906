"""Top layers: y + δ x + c in the last k blocks, as full fine-tuning trains them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from inlay.blocks.dense import twin
from inlay.core.method import Method, Shared, positive_int
from inlay.core.piece import OutputDelta
from inlay.core.site import BLOCK_ROLES, Site, Where
from inlay.errors import SpecError


@dataclass(frozen=True, repr=False)
class TopLayers(Method):
    """The projections and norms of the last blocks, and the final norm; all below stays the base.

    What a block has besides (relative position biases, norms of queries and keys) stays frozen,
    and so do the embeddings and the head that is tied to them.

    layers: k, how many blocks learn, counted from the end of a stack.
    stacks: "encoder", "decoder" or both. None means the stack whose output the head reads: in an
            encoder-decoder the decoder.
    at:     follows from the fields: projections and norms of these blocks, and the final norm.
    """

    layers: int = 2
    stacks: tuple[str, ...] | None = None

    identity: ClassVar[bool] = True
    lr: ClassVar[float] = 1e-4
    size: ClassVar[str] = "layers"
    paper: ClassVar[str] = "Li and Liang, ACL 2021 (FT-Top2)"
    sources: ClassVar[Mapping[str, str]] = {
        "layers": "the baseline FT-Top2 of the prefix-tuning paper",
        "stacks": "chosen",
        "lr": "chosen, as for full fine-tuning",
    }

    @override
    def check(self) -> None:
        positive_int(self, "layers")
        at = Where(BLOCK_ROLES, layers=tuple(range(-self.layers, 0)), stacks=self.stacks)
        object.__setattr__(self, "at", at)

    @override
    def build(self, site: Site, shared: Shared) -> OutputDelta | None:
        if self.stacks is None and site.stack != shared.sites[-1].stack:
            return None
        blocks = {s.layer for s in shared.sites if s.stack == site.stack and s.layer is not None}
        if len(blocks) < self.layers:
            raise SpecError(
                f"TopLayers: the {site.stack} has {len(blocks)} layers, not {self.layers}; "
                f"use at most layers={len(blocks)}"
            )
        return twin(self, site)


TopLayers.examples = (TopLayers(layers=1), TopLayers(stacks=("encoder",)))
