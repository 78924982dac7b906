"""What a training run needs of what learns: one inlay, several as one, or one and its base."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from inlay.core.method import ParameterGroup, Spec


class Learner(Protocol):
    """The side of `Inlay` that training sees."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def model(self) -> PreTrainedModel: ...  # noqa: D102
    @property
    def spec(self) -> Spec: ...  # noqa: D102
    def parameter_groups(self, learning_rate: float | None = None) -> list[ParameterGroup]: ...  # noqa: D102

    def training_state(self) -> dict[str, Tensor]: ...  # noqa: D102
    def load_training_state(self, state: dict[str, Tensor]) -> None: ...  # noqa: D102
