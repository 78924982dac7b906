"""Trainable: what a training run needs of what it trains.

That is one inlay (`Inlay`), several inlays of a multi-task run (`JointInlays`), or an inlay
together with its base (`FullModel`).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from inlay.core.method import ParameterGroup, Spec


class Trainable(Protocol):
    """The part of `Inlay` that the loop uses."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def model(self) -> PreTrainedModel:
        """The base."""

    @property
    def spec(self) -> Spec:
        """The methods that are trained."""

    def parameter_groups(self, learning_rate: float | None = None) -> list[ParameterGroup]:
        """The trained parameters; learning_rate: one for all methods instead of their own."""

    def penalty(self) -> Tensor | None:
        """A scalar that is added to the mean loss of a step; None for none."""

    def after_step(self, progress: float) -> None:
        """Called after each step of the optimiser; progress: from 0 to 1."""

    @property
    def settled(self) -> bool:
        """Whether what is trained now may be kept as the best state."""

    def training_state(self) -> dict[str, Tensor]:
        """Every tensor that a checkpoint must hold."""

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `training_state` returned."""
