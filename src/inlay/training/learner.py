"""What a training run needs of what learns: one inlay, or several as one."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from inlay.root import Root
from inlay.spec import Method, Spec


class Learner(Protocol):
    """The side of `Inlay` that training sees."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def model(self) -> PreTrainedModel: ...  # noqa: D102
    @property
    def root(self) -> Root: ...  # noqa: D102
    @property
    def spec(self) -> Spec: ...  # noqa: D102
    def by_method(self) -> list[tuple[Method, list[nn.Parameter]]]: ...  # noqa: D102
    def training_state(self) -> dict[str, Tensor]: ...  # noqa: D102
    def load_training_state(self, state: dict[str, Tensor]) -> None: ...  # noqa: D102
