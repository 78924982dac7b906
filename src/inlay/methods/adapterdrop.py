"""AdapterDrop: no adapter below layer k, k drawn for each batch (Rücklé et al., EMNLP 2021, 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from inlay.blocks.draws import unless
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared
from inlay.core.piece import Foldable, OutputDelta, Piece
from inlay.core.site import Site
from inlay.core.wrapper import Wrapper
from inlay.errors import PortError, SpecError
from inlay.methods.pfeiffer import Pfeiffer


@dataclass(frozen=True, repr=False)
class AdapterDrop(Wrapper):
    """Trains another method so that its lowest layers can be left out later (the robust variant).

    In training each batch draws k and leaves out the pieces of the layers below it, which makes
    the step shorter as well. The file is that of the inner method, with all of its layers;
    `inlay.drop_layers(handle, k)` leaves out the lowest k for use. To train for one k only (the
    specialised variant) give the inner method the other layers: `at=Where(roles, layers=...)`.

    inner: a method that adds to the output of modules: `Pfeiffer`, `Houlsby`, `Parallel`, `LoRA`.
    most:  the largest k; None for all layers but the last.
    at:    follows from the inner method: its places.
    """

    inner: Method = field(default_factory=Pfeiffer)
    most: int | None = None

    paper: ClassVar[str] = "Rücklé et al., EMNLP 2021"
    sources: ClassVar[Mapping[str, str]] = {"lr": "that of the inner method"}

    @override
    def check(self) -> None:
        """Also takes over what the inner method says of itself."""
        if not isinstance(self.inner, Method):
            raise SpecError(
                f"AdapterDrop: inner is one method, not {self.inner!r:.60}; wrap each alone"
            )
        if self.most is not None and (not isinstance(self.most, int) or self.most < 1):
            raise SpecError(f"AdapterDrop: most is a number of layers, not {self.most!r:.40}")
        for name in ("at", "identity", "passes", "size"):
            object.__setattr__(self, name, getattr(self.inner, name))

    @override
    def build(self, site: Site, shared: Shared) -> Piece | None:
        piece = self.inner.build(site, shared)
        if piece is None:
            return None
        if not isinstance(piece, OutputDelta):
            raise PortError(
                f"AdapterDrop leaves out what a method adds at modules, and "
                f"{type(self.inner).__name__} does something else at {site.name}; wrap an adapter "
                "such as Pfeiffer"
            )
        depth = 1 + max((s.layer for s in shared.sites if s.layer is not None), default=0)
        most = depth - 1 if self.most is None else self.most
        kind = FoldableDropped if isinstance(piece, Foldable) else Dropped
        return kind(piece, site.layer, most)

    @override
    def exported(self) -> Method:
        """The inner method: nothing is drawn when it is used."""
        return self.inner.exported()


AdapterDrop.examples = (AdapterDrop(inner=Pfeiffer(bottleneck=4)),)


class Dropped(OutputDelta):
    """A piece that does not act in training passes that draw a k above its layer."""

    draws: ClassVar[bool] = True

    def __init__(self, inner: OutputDelta, layer: int | None, most: int):
        super().__init__()
        self.inner = inner
        self.layer = layer
        self.most = most

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return self._unless_dropped(lambda: self.inner.delta(x, y, context), y, context)

    @override
    def scaled(self, factor: Tensor, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return self._unless_dropped(lambda: self.inner.scaled(factor, x, y, context), y, context)

    def _unless_dropped(
        self, compute: Callable[[], Tensor], y: Tensor, context: PassContext
    ) -> Tensor:
        if not self.training or self.layer is None:
            return compute()
        return unless(self.drawn(context) > self.layer, compute, y)

    def drawn(self, context: PassContext) -> Tensor:
        """k, the same for all layers of a stack and for all rows of a batch: `[]`."""
        return context.draw(self.most + 1, 1, "adapterdrop")[0]

    @override
    def export(self) -> dict[str, Tensor]:
        return self.inner.export()


class FoldableDropped(Foldable, Dropped):
    """A piece that can be merged, with all layers."""

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert isinstance(self.inner, Foldable)
        return self.inner.fold(w, b)
