"""classify: one text, or a pair -> a label; by words of the language model, or a trained head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.data.dataset import Example
from inlay.data.labels import label_name, names_of_labels, other_names
from inlay.data.raw import kind_of
from inlay.data.template import Template
from inlay.errors import DataError, TaskError, nearest
from inlay.methods.head import Head
from inlay.tasks import auxiliary, metrics
from inlay.tasks.base import Bound, Prediction
from inlay.tasks.label_records import classify_columns, classify_mistake, classify_records
from inlay.tasks.objectives import BinaryCrossEntropy, CrossEntropy, Distillation
from inlay.tasks.outputs import Scores, TextStates
from inlay.tasks.reader import Encoded, Reader, text_inputs
from inlay.tasks.records import Column, Mistake, Record
from inlay.tasks.requirements import require_head
from inlay.tasks.rows import Row, have_labels, require_labels
from inlay.tasks.scorer import ClassifyBatch, Scorer
from inlay.tasks.templated import Templated
from inlay.tasks.trained_head import TrainedHead
from inlay.tasks.vectors import FLAGS, check_no_vectors, labels_of_vector
from inlay.tasks.verbalizer import Verbalizer, WordScorer

MAX_LABELS = 1000


@dataclass(kw_only=True)
class Classify(Templated[ClassifyBatch, Scores]):
    """One text, or a pair -> a label.

    by: what decides: a `TrainedHead` in the inlay, or a `Verbalizer`, the likeliest of some words.
    objective: what is learned, and by which loss: `CrossEntropy` of one label for each row,
        `BinaryCrossEntropy` of any number of labels, or `Distillation` of a teacher's scores.
    template: how the fields are written, such as "{text} All in all, it was"; in a decoder it may
        end in `{mask}`. None, for a trained head, for `text` alone or with `text_pair`.
    label_names: what the data calls a label -> its name here: `{"0": "bad", "1": "good"}`, or
        `["bad", "good"]` for the numbers from 0 on; any other label keeps its name.
    metric: the primary metric. "f1" is that of the second of two labels; "micro_f1" is for any
        number of labels, where "accuracy" counts the rows of which every label is right.
    """

    name: ClassVar[str] = "classify"
    calibrates: ClassVar[bool] = True
    moved_fields: ClassVar[Mapping[str, str]] = {
        "verbalizer": 'by: {words: {negative: " bad", positive: " great"}}',
        "auxiliary": "by: {words: {…}, auxiliary_weight: 0.1}",
        "labels": "by: {labels: [negative, positive]}",
        "multi_label": "objective: {kind: binary_cross_entropy}",
        "class_weight": "objective: {class_weight: balanced}",
        "temperature": "objective: {temperature: 2}",
    }

    by: TrainedHead | Verbalizer = field(default_factory=TrainedHead)
    objective: CrossEntropy | BinaryCrossEntropy | Distillation = field(
        default_factory=CrossEntropy
    )
    label_names: dict[str, str] | None = None
    metric: metrics.ClassificationMetric = "accuracy"

    def __post_init__(self) -> None:
        self.label_names = names_of_labels(self.label_names)
        super().__post_init__()
        self._class_weights: Tensor | None = None
        if isinstance(self.by, Verbalizer):
            if self.template is None:
                raise TaskError(
                    "classify: a verbalizer needs a template, such as '{text} All in all, it was'"
                )
            if isinstance(self.objective, BinaryCrossEntropy):
                raise TaskError(
                    "classify: any number of labels takes a trained head; leave the words out"
                )
        if self.metric not in self.objective.metrics:
            raise TaskError(
                f"classify: metric={self.metric!r} is none of {self.objective.kind}, whose metrics "
                f"are {', '.join(self.objective.metrics)}"
            )
        labels = self._known_labels
        if labels is not None:
            self._check_labels(labels)

    # ------------------------------------------------------------------------------ its labels

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels in their order. Raises TaskError while they are not known."""
        labels = self._known_labels
        if labels is None:
            raise TaskError(
                "classify: the labels are not known yet; give them (--task.by.labels), or, in "
                "Python, call prepare(training examples)"
            )
        return labels

    @property
    def _known_labels(self) -> tuple[str, ...] | None:
        """The labels in their order, where the fields give them."""
        if self.by.labels is not None or self.label_names is None:
            return self.by.labels
        return tuple(dict.fromkeys(self.label_names.values()))

    def _check_labels(self, labels: Sequence[str]) -> None:
        """Check that these can be the labels, and compute the weights that fields give them."""
        for label in labels:
            if labels.count(label) > 1:
                raise TaskError(f"classify: label {label!r} is given twice")
        if not 2 <= len(labels) <= MAX_LABELS:
            raise TaskError(f"classify takes from 2 to {MAX_LABELS} labels, not {len(labels)}")
        if self.metric == "f1" and len(labels) > 2:
            raise TaskError(
                f"classify: metric='f1' is for two labels, not {len(labels)}; use 'macro_f1'"
            )
        for label in (self.label_names or {}).values():
            if label not in labels:
                raise TaskError(
                    f"classify: label_names makes a label {label!r}, which is none of the labels"
                    f"{nearest(label, labels)}"
                )
        self.objective.check_labels(labels)
        self._class_weights = self.objective.weights(labels)

    def _gold(self, example: Example) -> list[str]:
        """The names of the labels that an example has. Raises DataError."""
        values = self.objective.values(example)
        for value in values:
            if not isinstance(value, str | int | float):
                raise DataError(
                    f"{example.where}: a label is {kind_of(value)}, not text or a number"
                )
        labels = [label_name(value) for value in values]
        if "" in labels:
            raise DataError(f"{example.where}: its label is empty")
        renamed = self.label_names or {}
        if isinstance(self.objective, BinaryCrossEntropy) and not FLAGS.keys() & renamed.keys():
            given = None if self.objective.vectors is False else self._known_labels
            labels = labels_of_vector(example, labels, given)
        return list(dict.fromkeys(renamed.get(label, label) for label in labels))

    def _numbers(self) -> dict[str, int]:
        return {label: number for number, label in enumerate(self.labels)}

    def _gold_numbers(self, numbers: Mapping[str, int], example: Example) -> list[int]:
        """The numbers of the labels that an example has. Raises DataError for an unknown one."""
        gold = self._gold(example)
        for label in gold:
            if label not in numbers:
                raise DataError(
                    f"{example.where}: there is no label {label!r}{_unknown(label, numbers)}"
                )
        return [numbers[label] for label in gold]

    @override
    def prepare(self, examples: Iterable[Example]) -> None:
        """Take the labels from the training examples, unless they are given, and count them."""
        if self._known_labels is not None and not self.objective.needs_counts:
            return
        counts, rows = Counter[str](), 0
        lengths = Counter[int]()
        for example in examples:
            gold = self._gold(example)
            counts.update(gold)
            lengths[len(gold)] += 1
            rows += 1
        if self._known_labels is None:
            check_no_vectors(counts, lengths)
            self.set_labels(tuple(sorted(counts)))
        if self.objective.needs_counts:
            self._class_weights = self.objective.balanced(counts, self.labels, rows)

    @override
    def head(self) -> Head | None:
        return Head(labels=self.labels) if isinstance(self.by, TrainedHead) else None

    @override
    def set_labels(self, labels: tuple[str, ...]) -> None:
        if isinstance(self.by, TrainedHead) and self._known_labels is None:
            self._check_labels(labels)
            self.by = replace(self.by, labels=labels)
            if isinstance(self.objective, BinaryCrossEntropy) and self.objective.vectors is None:
                self.objective = replace(self.objective, vectors=False)  # no order of places

    @property
    @override
    def required_fields(self) -> tuple[str, ...]:
        names = Template(self.template or "{text}").names
        return (*(name for name in names if name != "mask"), self.objective.field)

    @property
    @override
    def gold_fields(self) -> tuple[str, ...]:
        return (self.objective.field,)

    @property
    @override
    def target_fields(self) -> tuple[str, ...]:
        return (self.objective.field, "scores")

    @override
    def check(self, example: Example) -> None:
        if self.objective.field in example.fields:
            self._gold(example)

    @override
    def stratum(self, example: Example) -> str | None:
        several = isinstance(self.objective, BinaryCrossEntropy)
        return None if several else self._gold(example)[0]

    # ---------------------------------------------------------------------------- its arithmetic

    @override
    def on_bind(self, bound: Bound, model: PreTrainedModel) -> None:
        if isinstance(self.by, Verbalizer):
            assert self.template is not None
            self.scorer: Scorer = self.by.scorer(bound, model, self.template)
        else:
            self.scorer = self.by.scorer(bound, self.template)
        self._reader = Reader.for_text(bound, self.scorer.template, self.truncate)

    @override
    def encode_some(self, examples: Sequence[Example], first_index: int) -> list[Row]:
        encoded = self._reader.read(examples, [self.bound.max_length] * len(examples))
        mask_id, classes = self.scorer.mask_id, len(self.labels)
        numbers = partial(self._gold_numbers, self._numbers())
        rows = []
        for index, (example, text) in enumerate(zip(examples, encoded, strict=True), first_index):
            targets = self.objective.targets(example, numbers, classes)
            if mask_id is not None and text.ids.count(mask_id) != 1:
                raise DataError(f"{example.where}: its text contains the mask token; remove it")
            types = text.token_type_ids
            rows.append(Row(text.ids, targets, index, example.where, len(text.ids), types))
        return rows

    @override
    def collate(self, rows: Sequence[Row]) -> ClassifyBatch:
        inputs = text_inputs(
            [Encoded(row.input_ids, row.token_type_ids) for row in rows], self.bound.pad_id
        )
        width = inputs["input_ids"].shape[1]
        labels = None
        if have_labels(rows):
            targets = [row.labels or [] for row in rows]
            labels = self.objective.collate(targets, len(self.labels))
        positions = self.scorer.positions([row.input_ids for row in rows], width)
        return ClassifyBatch(inputs, positions, labels)

    @override
    def outputs(self, model: PreTrainedModel, batch: ClassifyBatch) -> Scores:
        head = self.head()
        if head is not None:
            require_head(model, head)
        return self.objective.outputs(*self.scorer.scores(self.chart(model), model, batch))

    @override
    def loss(self, outputs: Scores, batch: ClassifyBatch) -> tuple[Tensor, int]:
        """The objective's loss, and how many rows there are."""
        labels = require_labels(batch.labels)
        if self.objective.needs_counts and self._class_weights is None:
            raise TaskError(
                "classify: class_weight='balanced' needs counts; call prepare(training examples)"
            )
        weights = self._class_weights
        weights = None if weights is None else weights.to(outputs.scores.device)
        loss = self.objective.loss(outputs.scores, labels, weights)
        if isinstance(self.by, Verbalizer) and outputs.text is not None:
            loss = auxiliary.mixed(self.by.auxiliary_weight, loss, outputs.text)
        return loss, len(labels)

    def text_states(self, model: PreTrainedModel, batch: ClassifyBatch) -> TextStates:
        """Run the model for a language-model loss on the texts of a batch, without their labels.

        Raises TaskError where a trained head decides.
        """
        if not isinstance(self.scorer, WordScorer):
            raise TaskError("classify: a language-model loss on texts needs a verbalizer")
        return self.scorer.text_states(self.chart(model), model, batch)

    @torch.no_grad()
    @override
    def predict(self, model: PreTrainedModel, batch: ClassifyBatch) -> list[Prediction]:
        """The name of the likeliest label, or the names of those likelier than not."""
        return list(self.objective.decide(self.outputs(model, batch).scores, self.labels))

    @property
    @override
    def record_columns(self) -> tuple[Column, ...]:
        return classify_columns(self.objective, self.by, self.labels)

    @torch.no_grad()
    @override
    def records(
        self, model: PreTrainedModel, batch: ClassifyBatch, temperature: float = 1.0
    ) -> list[Record]:
        scores = self.outputs(model, batch).scores
        return classify_records(self.objective, self.by, scores, self.labels, temperature)

    @override
    def class_scores(self, outputs: Scores, batch: ClassifyBatch) -> tuple[Tensor, Tensor] | None:
        return None if batch.labels is None else self.objective.classes(outputs, batch.labels)

    @override
    def mistake(self, record: Record, example: Example) -> Mistake | None:
        return classify_mistake(record, self._gold(example))

    @torch.no_grad()
    @override
    def vote(
        self, model: PreTrainedModel, batch: ClassifyBatch, members: int
    ) -> tuple[list[Any], list[Any]]:
        """Of labels with equally many votes the one with the highest mean score wins."""
        scores = self.outputs(model, batch).scores
        votes, winners = self.objective.vote(scores, self.labels, members)
        return list(votes), list(winners)

    @override
    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        gold = [self._gold(example) for example in examples]
        return self.objective.score(predictions, gold, self.labels)

    @override
    def confusion(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, dict[str, int]]:
        if isinstance(self.objective, BinaryCrossEntropy):
            return {}
        labels, numbers = self.labels, self._numbers()
        gold = [labels[self._gold_numbers(numbers, example)[0]] for example in examples]
        counts = metrics.confusion(predictions, gold, labels)
        return {
            label: dict(zip(labels, row, strict=True))
            for label, row in zip(labels, counts, strict=True)
        }


def _unknown(label: str, known: Mapping[str, int]) -> str:
    """The end of a message about an unknown label: the cure."""
    names = other_names(label, known)
    if names is not None:
        return f"; did you mean {names[label]!r}? then give label_names={names!r:.200}"
    if label.isdigit() and int(label) < len(known):
        return (
            f"; if labels are numbered from 0, give label_names={list(known)} (--task.label_names)"
        )
    return nearest(label, known)
