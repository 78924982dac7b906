"""What `Classify` learns from, and by which loss: one label, any number of labels, or scores."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from inlay.data.dataset import Example, Value
from inlay.data.labels import label_name
from inlay.errors import DataError, TaskError, nearest
from inlay.tasks import metrics
from inlay.tasks.options import Option
from inlay.tasks.outputs import BinaryScores, Scores, TextStates, no_and_yes
from inlay.tasks.rows import field_of, list_of
from inlay.tasks.voting import majority

ClassWeight = Literal["balanced"] | dict[str, float] | None

Label = str | list[str]
"""What is predicted for a row: the name of a label, or the names of several."""


@dataclass(frozen=True)
class Objective(Option, ABC):
    """What a row of `Classify` teaches, how that makes a loss, and how a label is decided.

    field: the field of an example that holds its gold label or labels.
    metrics: those that its predictions have.
    """

    field: ClassVar[str] = "label"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "f1", "matthews")

    @property
    def needs_counts(self) -> bool:
        """Whether the weights of the classes come from the counts of the training data."""
        return False

    def values(self, example: Example) -> list[Value]:
        """The gold labels of an example as the data has them."""
        return [field_of(example, self.field)]

    def targets(
        self, example: Example, numbers: Callable[[Example], list[int]], classes: int
    ) -> list | None:
        """What a row learns, or None for nothing.

        Args:
            example: the row.
            numbers: gives the numbers of an example's gold labels.
            classes: how many labels there are.

        Raises DataError, which names the example.
        """
        return numbers(example) if self.field in example.fields else None

    def collate(self, targets: Sequence[list], classes: int) -> Tensor:
        """The targets of all rows of a batch as a tensor."""
        return torch.tensor(targets).squeeze(1)

    @abstractmethod
    def loss(self, scores: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """The loss summed over rows, a scalar.

        Args:
            scores: of the labels, `[B, C]`.
            targets: what `collate` returned.
            weights: of the classes, `[C]`, or None.
        """

    def check_labels(self, labels: Sequence[str]) -> None:
        """Raise TaskError where the objective's own fields do not fit the labels."""

    def weights(self, labels: Sequence[str]) -> Tensor | None:
        """The weights of the classes that its fields give, `[C]`."""
        return None

    def balanced(self, counts: Mapping[str, int], labels: Sequence[str], rows: int) -> Tensor:
        """The weights `[C]` for `class_weight="balanced"`; each is 1 where it is not defined.

        Args:
            counts: how many training rows have each label.
            labels: the names of the labels in their order.
            rows: how many training rows there are.
        """
        return torch.ones(len(labels))

    def outputs(self, scores: Tensor, text: TextStates | None) -> Scores:
        """Scores `[B, C]` as the outputs of a run."""
        return Scores(scores, text)

    def classes(self, outputs: Scores, targets: Tensor) -> tuple[Tensor, Tensor] | None:
        """Scores `[N, C]` of which a softmax makes probabilities, and the right class `[N]`.

        Args:
            outputs: of a run.
            targets: what `collate` returned.

        None where the targets are no classes.
        """
        return outputs.scores, targets

    def shares(self, scores: Tensor, temperature: float) -> Tensor:
        """The probability of each label, `[B, C]`, from scores `[B, C]`."""
        return torch.softmax(scores / temperature, -1)

    def decide(self, scores: Tensor, labels: Sequence[str]) -> list[Label]:
        """The predicted label of each row, from scores `[B, C]`."""
        return [labels[best] for best in scores.argmax(1).tolist()]

    def vote(
        self, scores: Tensor, labels: Sequence[str], members: int
    ) -> tuple[list[Label], list[Label]]:
        """The vote of each row, and the winner of each group of `members` rows."""
        votes, winners = majority(scores, members)
        return [labels[n] for n in votes.tolist()], [labels[n] for n in winners.tolist()]

    def score(
        self, predictions: Sequence[Label], gold: Sequence[list[str]], labels: Sequence[str]
    ) -> dict[str, float]:
        """The metrics of predictions."""
        positive = labels[1] if len(labels) == 2 else None
        names = [str(name) for name in predictions]
        return metrics.classification(names, [name for (name,) in gold], positive=positive)


@dataclass(frozen=True)
class Weighted(Objective, ABC):
    """An objective whose classes may have weights.

    class_weight: label -> its weight in the loss, 1 for a label left out; or "balanced", from the
        counts of the training data.
    """

    class_weight: ClassWeight = None

    def __post_init__(self) -> None:
        if isinstance(self.class_weight, Mapping):
            named = {label_name(label): weight for label, weight in self.class_weight.items()}
            self.normalise("class_weight", named)
        super().__post_init__()

    @property
    @override
    def needs_counts(self) -> bool:
        return self.class_weight == "balanced"

    @override
    def check_labels(self, labels: Sequence[str]) -> None:
        if not isinstance(self.class_weight, dict):
            return
        for label, weight in self.class_weight.items():
            if label not in labels:
                raise TaskError(
                    f"{self.kind}: class_weight has a label {label!r}, which is none of the labels"
                    f"{nearest(label, labels)}"
                )
            if not 0 < weight < math.inf:
                raise TaskError(
                    f"{self.kind}: class_weight of {label!r} must be above 0, not {weight}"
                )

    @override
    def weights(self, labels: Sequence[str]) -> Tensor | None:
        if not isinstance(self.class_weight, dict):
            return None
        return torch.tensor([float(self.class_weight.get(label, 1)) for label in labels])


@dataclass(frozen=True)
class CrossEntropy(Weighted):
    """One label for each row, the field `label`, by cross entropy over the labels.

    class_weight: label -> the weight of its rows in the loss, 1 for a label left out; or
        "balanced", n / (C · n_label), with the counts of the training data.
    """

    kind: ClassVar[str] = "cross_entropy"

    @override
    def balanced(self, counts: Mapping[str, int], labels: Sequence[str], rows: int) -> Tensor:
        present = sum(count > 0 for count in counts.values())
        weights = [rows / present / counts[name] if counts.get(name) else 1.0 for name in labels]
        return torch.tensor(weights)

    @override
    def loss(self, scores: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Weights are not divided out; "balanced" ones have a mean of 1 over the training data."""
        return F.cross_entropy(scores, targets, weights, reduction="sum")


@dataclass(frozen=True)
class BinaryCrossEntropy(Weighted):
    """Any number of labels for each row, the list `labels`, each decided by a sigmoid.

    class_weight: label -> the weight of the rows that have it against those that do not, 1 for a
        label left out; or "balanced", which makes them equal: n_without / n_with.
    vectors: whether `labels` is a vector of 0 and 1 with a place for each label, in their order.
        None reads it so where it is as long as the labels that are given, but not where the
        labels come from the training data.
    """

    kind: ClassVar[str] = "binary_cross_entropy"
    field: ClassVar[str] = "labels"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "micro_f1")

    vectors: bool | None = None

    @override
    def values(self, example: Example) -> list[Value]:
        return list_of(example, self.field)

    @override
    def collate(self, targets: Sequence[list], classes: int) -> Tensor:
        """1 where a row has a label, `[B, C]`."""
        labels = torch.zeros(len(targets), classes)
        for row, numbers in enumerate(targets):
            labels[row, numbers] = 1
        return labels

    @override
    def balanced(self, counts: Mapping[str, int], labels: Sequence[str], rows: int) -> Tensor:
        having = [counts.get(name, 0) for name in labels]
        return torch.tensor([(rows - n) / n if 0 < n < rows else 1.0 for n in having])

    @override
    def loss(self, scores: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """The mean over the labels, summed over rows."""
        losses = F.binary_cross_entropy_with_logits(
            scores, targets, pos_weight=weights, reduction="none"
        )
        return losses.mean(1).sum()

    @override
    def outputs(self, scores: Tensor, text: TextStates | None) -> Scores:
        return BinaryScores(scores, text)

    @override
    def classes(self, outputs: Scores, targets: Tensor) -> tuple[Tensor, Tensor] | None:
        """Each label of each row is a choice between "no" and "yes"."""
        return no_and_yes(outputs.scores).flatten(0, 1), targets.long().flatten()

    @override
    def shares(self, scores: Tensor, temperature: float) -> Tensor:
        return torch.sigmoid(scores / temperature)

    @override
    def decide(self, scores: Tensor, labels: Sequence[str]) -> list[Label]:
        return _names(no_and_yes(scores).argmax(-1), labels)

    @override
    def vote(
        self, scores: Tensor, labels: Sequence[str], members: int
    ) -> tuple[list[Label], list[Label]]:
        """A vote on every label."""
        votes, winners = majority(no_and_yes(scores), members)
        return _names(votes, labels), _names(winners, labels)

    @override
    def score(
        self, predictions: Sequence[Label], gold: Sequence[list[str]], labels: Sequence[str]
    ) -> dict[str, float]:
        return metrics.multi_label(predictions, gold, labels)


@dataclass(frozen=True)
class Distillation(Objective):
    """A teacher's scores, the list `scores` with a logit for each label, by KL divergence.

        loss = T² · Σ_rows KL(softmax(s / T) ‖ softmax(z / T))

    s are the teacher's scores and z the student's. T² keeps gradients as large as those of labels
    (Hinton et al., 2015). A `label` next to the scores is only measured.

    temperature: T, which makes both distributions softer; 2 in PET (Schick & Schütze, EACL 2021).
    """

    kind: ClassVar[str] = "distillation"

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0

    @override
    def classes(self, outputs: Scores, targets: Tensor) -> tuple[Tensor, Tensor] | None:
        return None  # they are a teacher's scores

    @override
    def targets(
        self, example: Example, numbers: Callable[[Example], list[int]], classes: int
    ) -> list | None:
        if "scores" not in example.fields:
            return None
        scores = list_of(example, "scores")
        valid = all(isinstance(score, int | float) and math.isfinite(score) for score in scores)
        if len(scores) != classes or not valid:
            raise DataError(
                f"{example.where}: scores must be {classes} numbers, one for each label, not "
                f"{scores!r:.80}"
            )
        return [float(score) for score in scores]

    @override
    def collate(self, targets: Sequence[list], classes: int) -> Tensor:
        """The scores, `[B, C]`."""
        return torch.tensor(targets)

    @override
    def loss(self, scores: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        teacher = F.log_softmax(targets / self.temperature, -1)
        student = F.log_softmax(scores / self.temperature, -1)
        divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)
        return self.temperature**2 * divergence


def _names(decisions: Tensor, labels: Sequence[str]) -> list[Label]:
    """The names of the labels where decisions `[B, C]` are 1, row by row."""
    return [
        [name for name, yes in zip(labels, row, strict=True) if yes] for row in decisions.tolist()
    ]
