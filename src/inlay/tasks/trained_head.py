"""TrainedHead: a classifier on the last hidden state decides, and is part of the inlay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.architectures.chart import Chart
from inlay.data.labels import label_name
from inlay.errors import TaskError
from inlay.runtime.trained_heads import classify, head_inputs
from inlay.tasks.base import Bound
from inlay.tasks.masks import MASK, count_masks, mask_token
from inlay.tasks.options import Option
from inlay.tasks.outputs import TextStates
from inlay.tasks.scorer import ClassifyBatch, Scorer


@dataclass(frozen=True)
class TrainedHead(Option):
    """A trained head decides: a `Head(labels=...)` in the inlay, with these labels in this order.

    In an encoder it reads the state at `{mask}` where the template has one.

    labels: the names of the labels; None takes them from `label_names` or, sorted, from the
        training data.
    """

    kind: ClassVar[str] = "trained_head"

    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.labels, list | tuple):
            self.normalise("labels", tuple(map(label_name, self.labels)))
        super().__post_init__()

    def scorer(self, bound: Bound, template: str | None) -> Scorer:
        """How a model that the task is bound to scores the labels.

        Raises TaskError where the model has no use for the masks of the template, or lacks them.
        """
        if template is None or not count_masks(template):
            return HeadScorer(template, None)
        if bound.chart.kind != "encoder":
            raise TaskError(
                f"template {template!r}: a trained head reads {MASK} in an encoder only; leave it "
                "out"
            )
        return HeadScorer(*mask_token(bound, template))


class HeadScorer(Scorer):
    """Scores by the trained heads of the rows' inlays."""

    @override
    def scores(
        self, chart: Chart, model: PreTrainedModel, batch: ClassifyBatch
    ) -> tuple[Tensor, TextStates | None]:
        states, mask = head_inputs(model, chart, **batch.inputs)
        if self.mask_id is not None:
            mask = (batch.inputs["input_ids"] == self.mask_id).long()
        return classify(model, states, mask).float(), None
