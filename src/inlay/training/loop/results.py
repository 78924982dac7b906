"""What is counted while a run goes on, and what is told when it is over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """One look at `dev`. step, epoch, seconds: when. score: of the task's metric."""

    step: int
    epoch: float
    seconds: float
    score: float
    scores: dict[str, float]


@dataclass(frozen=True)
class Result:
    """What became of a run.

    stopped: why it ended: "epochs", "steps", "minutes" or "patience". steps, epochs, tokens: how
    far it came. seconds: of wall-clock time, in all parts of the run. loss: of the last step. lr:
    the highest rate. evaluations: all of them. best: the one whose pieces the inlay now has, or
    the last one where `keep_best` is off; None without `dev`.
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
    """Where a run stands: what changes from step to step, and is not a tensor.

    position: steps done in this epoch. best: the number of the best evaluation. waited: how many
    evaluations have passed since.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    best: int | None = None
    waited: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Counters:
        """What `dataclasses.asdict` made of one."""
        seen = [Evaluation(**one) for one in values["evaluations"]]
        return Counters(**{**values, "evaluations": seen})
