"""What a training run needs of what learns: one inlay, several as one, or one and its base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from inlay.core.method import Method, Spec


class Learner(Protocol):
    """The side of `Inlay` that training sees."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def model(self) -> PreTrainedModel: ...  # noqa: D102
    @property
    def spec(self) -> Spec: ...  # noqa: D102
    def by_method(self) -> Sequence[tuple[Method | None, list[nn.Parameter]]]:
        """What learns, method by method; None stands for the base, which comes last."""

    def training_state(self) -> dict[str, Tensor]: ...  # noqa: D102
    def load_training_state(self, state: dict[str, Tensor]) -> None: ...  # noqa: D102
