"""The counters of a run in progress, and the result of a finished one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """One evaluation on `dev`.

    step, epoch, seconds: when it was made.
    score: by the task's primary metric.
    scores: all metrics by name.
    """

    step: int
    epoch: float
    seconds: float
    score: float
    scores: dict[str, float]


@dataclass(frozen=True)
class Result:
    """What a training run led to.

    stopped: why it ended: "epochs", "steps", "minutes" or "patience".
    steps, epochs, tokens: how much was trained.
    seconds: wall-clock time, over all parts of a resumed run.
    loss: of the last step.
    lr: the highest learning rate.
    evaluations: all evaluations on `dev`.
    best: the evaluation whose pieces the inlay now has, or the last one where `keep_best` is off;
        None without `dev`.
    """

    stopped: str
    steps: int
    epochs: float
    tokens: int
    seconds: float
    loss: float
    lr: float
    evaluations: tuple[Evaluation, ...]
    best: Evaluation | None


@dataclass
class Counters:
    """Where a run stands: everything that changes from step to step and is not a tensor.

    position: steps made in this epoch.
    best: the index of the best evaluation.
    without_improvement: how many evaluations were made since the best one.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    best: int | None = None
    without_improvement: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Counters:
        """The counters that `dataclasses.asdict` wrote."""
        evaluations = [Evaluation(**evaluation) for evaluation in values["evaluations"]]
        return Counters(**{**values, "evaluations": evaluations})
