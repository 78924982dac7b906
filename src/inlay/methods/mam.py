"""MAM: a short prefix and a scaled parallel adapter (He et al., ICLR 2022, section 4.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from inlay.core.method import Preset, Spec
from inlay.core.site import Site
from inlay.methods.parallel import Parallel
from inlay.methods.prefix import Prefix


@dataclass(frozen=True, repr=False)
class MAM(Preset):
    """Most of the parameters beside the feed-forward layers, a few in front of all attention.

    length:     P, virtual tokens of the prefix.
    bottleneck: M, the inner width of the adapters.
    scale:      s, the adapters' factor.
    mlp:        inner width of the prefix's MLP in training; None for none.
    """

    length: int = 30
    bottleneck: int = 512
    scale: float = 4.0
    mlp: int | None = 800

    size: ClassVar[str] = "bottleneck"
    paper: ClassVar[str] = "He et al., ICLR 2022"
    sources: ClassVar[Mapping[str, str]] = {
        "length": "the authors' script for XSum; 16 on GLUE",
        "bottleneck": "the authors' script for XSum; 16 on GLUE",
        "scale": "the authors' script for XSum; 2 on GLUE",
        "mlp": "the authors' script for XSum",
        "lr": "those of its parts",
    }

    @override
    def check(self) -> None:
        self.expand(())

    @override
    def expand(self, sites: Sequence[Site]) -> Spec:
        prefix = Prefix(length=self.length, mlp=self.mlp)
        return prefix + Parallel(bottleneck=self.bottleneck, scale=self.scale)


MAM.examples = (MAM(length=2, bottleneck=3, mlp=None),)
