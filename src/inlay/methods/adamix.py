"""AdaMix: y + U⁽ᵏ⁾ f(D⁽ʲ⁾ y), j and k drawn at random (Wang et al., EMNLP 2022, section 3)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import override

from inlay.blocks.draws import chosen
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, positive_int
from inlay.core.piece import Foldable, OutputDelta, Piece, TwoProjections
from inlay.core.site import Site, Where
from inlay.errors import PortError, SpecError
from inlay.methods.houlsby import Houlsby
from inlay.methods.lora import LoRA


@dataclass(frozen=True, repr=False)
class AdaMix(Method):
    """Several copies of an adapter or of LoRA in each place, averaged when training is over.

    In training every pass takes one down- and one up-projection at random in each layer, for the
    whole batch. Two passes over a batch are held together by a consistency loss, the symmetrised
    KL divergence of what they predict; the task's loss is that of the first. A file holds the
    means: a plain adapter or LoRA.

    inner:       the method that is copied: `Houlsby(at="mlp")`, `LoRA(rank=4)`, `Parallel()`.
    copies:      M, how many there are.
    share:       the projection that the copies have in common: "up", "down" or None.
    consistency_weight: weight of the consistency loss; 0 leaves out the second pass.
    inference:   "mean" of the copies, or "random" ones, the paper's ablation: the file then holds
                 all copies.
    at:          follows from the inner method: its places.
    """

    inner: Method = field(default_factory=lambda: Houlsby(bottleneck=16, at=Where(("mlp",))))
    copies: int = 4
    share: Literal["up", "down"] | None = "up"
    consistency_weight: float = 1.0
    inference: Literal["mean", "random"] = "mean"

    paper: ClassVar[str] = "Wang et al., EMNLP 2022"
    sources: ClassVar[Mapping[str, str]] = {
        "copies": "the paper's for language understanding",
        "consistency_weight": "the authors' code for language understanding; 100 for generation",
        "lr": "that of the inner method",
    }

    @override
    def check(self) -> None:
        """Also takes over what the inner method says of itself."""
        positive_int(self, "copies")
        if not isinstance(self.inner, Method):
            raise SpecError(f"AdaMix: inner is one method, not {self.inner!r:.60}; mix each alone")
        if self.consistency_weight < 0:
            raise SpecError("AdaMix: consistency_weight must be 0 or more; 0 leaves the loss out")
        if self.share not in ("up", "down", None) or self.inference not in ("mean", "random"):
            raise SpecError(
                'AdaMix: share is "up", "down" or None, and inference is "mean" or "random"'
            )
        name = type(self.inner).__name__
        if self.inner.needs_preparation or self.inner.has_penalty or self.inner.has_schedule:
            raise SpecError(
                f"AdaMix copies methods that learn by gradients alone, and {name} does more in "
                "training; mix LoRA, Houlsby or Parallel"
            )
        for name in ("at", "identity", "size"):
            object.__setattr__(self, name, getattr(self.inner, name))
        object.__setattr__(self, "passes", 2 if self.consistency_weight else 1)

    @override
    def build(self, site: Site, shared: Shared) -> Piece | None:
        piece = self.inner.build(site, shared)
        if piece is None:
            return None
        if not (isinstance(piece, OutputDelta) and isinstance(piece, TwoProjections)):
            raise PortError(
                f"AdaMix mixes pieces of two projections, and {type(self.inner).__name__} sets "
                f'another into {site.name}; give its sub-layers alone, such as at=("mlp",)'
            )
        folds = isinstance(piece, Foldable) and self.inference == "mean"
        kind = FoldableMixture if folds else Mixture
        return kind(piece, site.name, self)

    @override
    def with_size(self, steps: int) -> Self:
        return dataclasses.replace(self, inner=self.inner.with_size(steps))

    @override
    def in_layers(self, layers: Sequence[int]) -> Self:
        return dataclasses.replace(self, inner=self.inner.in_layers(layers))

    @override
    def learning_rate(self) -> float:
        return self.inner.learning_rate()

    @override
    def consistency(self, divergence: Tensor) -> Tensor:
        return self.consistency_weight * divergence

    @override
    def exported(self) -> Method:
        """The inner method, unless copies are drawn at inference too."""
        inner = self.inner.exported()
        return inner if self.inference == "mean" else dataclasses.replace(self, inner=inner)


AdaMix.examples = (
    AdaMix(inner=Houlsby(bottleneck=4, std=0.1, at=Where(("mlp",))), copies=3),
    AdaMix(inner=LoRA(rank=2), copies=2, share=None, consistency_weight=0.0),
)


class Mixture(OutputDelta):
    """The copies of one place, equal at the start; what they share is one parameter."""

    draws: ClassVar[bool] = True

    def __init__(self, piece: OutputDelta, name: str, spec: AdaMix):
        super().__init__()
        assert isinstance(piece, TwoProjections)
        self.name = name
        self.random = spec.inference == "random"
        names = [n for n, _ in piece.named_parameters()]
        self.names = {
            "down": tuple(n for n in names if n in piece.down),
            "up": tuple(n for n in names if n not in piece.down),
        }
        self.shared = () if spec.share is None else self.names[spec.share]
        self.copies = nn.ModuleList([piece])
        for _ in range(spec.copies - 1):
            twin = copy.deepcopy(piece)
            for shared in self.shared:
                module, _, last = shared.rpartition(".")
                setattr(twin.get_submodule(module), last, piece.get_parameter(shared))
            self.copies.append(twin)

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return functional_call(self.copies[0], self._chosen(context), (x, y, context))

    @override
    def scaled(self, factor: Tensor, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return functional_call(self.copies[0], self._chosen(context), (x, y, context, factor))

    def _chosen(self, context: PassContext) -> dict[str, Tensor]:
        """The parameters that this pass takes: drawn ones, or the means."""
        return self._drawn(*self.route(context)) if self.training or self.random else self.means()

    def route(self, context: PassContext) -> Tensor:
        """The numbers of the down- and up-projection of this pass, for all of its rows: `[2]`."""
        return context.draw(len(self.copies), 2, "route", self.name)

    def means(self) -> dict[str, Tensor]:
        """The mean of the copies of each parameter, by its name in the inner piece."""
        return {
            name: self._parameter(0, name)
            if name in self.shared
            else torch.stack([self._parameter(i, name) for i in range(len(self.copies))]).mean(0)
            for name in (*self.names["down"], *self.names["up"])
        }

    @override
    def export(self) -> dict[str, Tensor]:
        if not self.random:
            return {name: tensor.detach() for name, tensor in self.means().items()}
        return {
            name: tensor
            for name, tensor in super().export().items()
            if name.startswith(FIRST) or name.split(".", 2)[2] not in self.shared
        }

    def _drawn(self, down: Tensor, up: Tensor) -> dict[str, Tensor]:
        every = range(len(self.copies))
        return {
            name: self._parameter(0, name)
            if name in self.shared
            else chosen([self._parameter(i, name) for i in every], number)
            for half, number in (("down", down), ("up", up))
            for name in self.names[half]
        }

    def _parameter(self, number: int, name: str) -> nn.Parameter:
        return self.copies[number].get_parameter(name)


FIRST = "copies.0."


class FoldableMixture(Foldable, Mixture):
    """A mixture that can be merged: its means are."""

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        inner: Any = copy.deepcopy(self.copies[0])
        inner.load({name: tensor.detach() for name, tensor in self.means().items()})
        folded: tuple[Tensor, Tensor | None] = inner.fold(w, b)
        return folded
