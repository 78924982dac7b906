"""UniPELT: LoRA, prefix and adapter, each behind a gate that reads the input (Mao et al., 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from inlay.core.method import Preset, Spec
from inlay.core.site import Site
from inlay.methods.gate import Gate
from inlay.methods.lora import LoRA
from inlay.methods.pfeiffer import Pfeiffer
from inlay.methods.prefix import Prefix


@dataclass(frozen=True, repr=False)
class UniPELT(Preset):
    """Three methods in every layer, and gates that learn which of them a text needs.

    The gate of LoRA stands in the place of its α/r, as in the authors' code, and queries and
    values have one each. What a gate reads, in encoders and in decoders, is said at `Gate`.

    rank:       R of LoRA.
    length:     P, virtual tokens of the prefix.
    bottleneck: M of the adapter; None means a sixteenth of the hidden width.
    mlp:        inner width of the prefix's MLP in training; None for none.
    """

    rank: int = 8
    length: int = 10
    bottleneck: int | None = None
    mlp: int | None = 512

    size: ClassVar[str] = "bottleneck"
    paper: ClassVar[str] = "Mao et al., ACL 2022"
    sources: ClassVar[Mapping[str, str]] = {
        "rank": "the authors' code",
        "length": "the authors' code",
        "bottleneck": "the authors' code: 48 of 768",
        "mlp": "the authors' code",
        "lr": "those of its parts",
    }

    @override
    def check(self) -> None:
        self.expand(())

    @override
    def expand(self, sites: Sequence[Site]) -> Spec:
        return (
            Gate(LoRA(rank=self.rank, alpha=float(self.rank)), reads="input")
            + Gate(Prefix(length=self.length, mlp=self.mlp), reads="input")
            + Gate(Pfeiffer(bottleneck=self.bottleneck), reads="input")
        )


UniPELT.examples = (UniPELT(rank=2, length=2, bottleneck=3, mlp=None),)
