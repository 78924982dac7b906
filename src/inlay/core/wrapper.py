"""Wrapper: a method that holds another one, whose pieces stand inside its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.core.method import Loss, Method, ParameterGroup, Shared
from inlay.core.piece import Piece
from inlay.core.site import Site


class Wrapper(Method, listed=False):
    """Hands everything that training asks of a method on to the inner one.

    inner: the method inside. Every piece of the wrapper keeps the inner method's as `inner`.
    """

    inner: Method

    @override
    def with_size(self, steps: int) -> Self:
        changed: Any = dataclasses.replace(self, inner=self.inner.with_size(steps))  # type: ignore[type-var]
        return changed

    @override
    def in_layers(self, layers: Sequence[int]) -> Self:
        changed: Any = dataclasses.replace(self, inner=self.inner.in_layers(layers))  # type: ignore[type-var]
        return changed

    @override
    def learning_rate(self) -> float:
        return self.inner.learning_rate()

    @property
    @override
    def needs_preparation(self) -> bool:
        return self.inner.needs_preparation

    @property
    @override
    def preparation_rows(self) -> int | None:
        return self.inner.preparation_rows

    @property
    @override
    def has_penalty(self) -> bool:
        return self.inner.has_penalty

    @property
    @override
    def has_schedule(self) -> bool:
        return self.inner.has_schedule

    @override
    def prepare(
        self, base: PreTrainedModel, sites: Sequence[Site], batches: Iterable[Loss]
    ) -> Mapping[str, Tensor]:
        return self.inner.prepare(base, sites, batches)

    @override
    def finish(self, pieces: Mapping[str, Piece], shared: Shared) -> None:
        self.inner.finish(inner_pieces(pieces), shared)

    @override
    def penalty(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module]
    ) -> Tensor | None:
        return self.inner.penalty(inner_pieces(pieces), shared)

    @override
    def consistency(self, divergence: Tensor) -> Tensor:
        return self.inner.consistency(divergence)

    @override
    def after_step(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module], progress: float
    ) -> None:
        self.inner.after_step(inner_pieces(pieces), shared, progress)

    @override
    def settled(self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module]) -> bool:
        return self.inner.settled(inner_pieces(pieces), shared)

    @override
    def parameter_groups(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module], learning_rate: float
    ) -> Sequence[ParameterGroup]:
        return self.inner.parameter_groups(inner_pieces(pieces), shared, learning_rate)


def inner_pieces(pieces: Mapping[str, Any]) -> dict[str, Piece]:
    """The pieces of the inner method, by the name of their site."""
    return {name: piece.inner for name, piece in pieces.items()}
