"""classify: one text, or a pair -> a label; by a word of the language model, or a trained head."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from inlay.data.dataset import Example, Value
from inlay.data.fields import label_name
from inlay.data.raw import kind_of
from inlay.data.template import Template
from inlay.errors import DataError, TaskError, nearest
from inlay.heads import classify as classify_by_head
from inlay.heads import head_inputs
from inlay.methods.head import Head
from inlay.tasks import auxiliary, cloze, metrics
from inlay.tasks.auxiliary import Share
from inlay.tasks.base import (
    Batch,
    Bound,
    Prediction,
    Row,
    field_of,
    labelled,
    list_of,
    majority,
    need_head,
    need_labels,
    need_language_head,
)
from inlay.tasks.distillation import distilled
from inlay.tasks.rows import INPUTS, Encoded, Reader, stacked
from inlay.tasks.templated import Templated

MOST_LABELS = 1000

SINGLE = ("accuracy", "macro_f1", "f1", "matthews")
"""Metrics of one label a row."""

MULTI = ("accuracy", "macro_f1", "micro_f1")
"""Metrics of any number of labels a row."""


@dataclass(kw_only=True)
class Classify(Templated):
    """One text, or a pair -> a label.

    With `verbalizer` the language-model head decides: the label wins whose word is the most
    likely token at one position, behind the text in a decoder, at `{mask}` in an encoder, and in
    an encoder–decoder at `{mask}`, its sentinel, or without one at the beginning of the decoder's
    text. Without it a trained head decides, a `Head(labels=...)` in the inlay, which must name the
    same labels in the same order. In an encoder it reads the state at `{mask}` where the template
    has one.

    A row may have `scores` for its label: a list of logits, one for each of `labels`, such as a
    teacher's. It then learns by these (`distil`), and a `label` beside them is only measured.

    labels: the names of the labels; None takes them from the verbalizer, from `label_names` or,
        sorted, from the training data (`prepare`).
    label_names: what the data calls a label -> its name here: `{"0": "bad", "1": "good"}`; any
        other label keeps its name.
    verbalizer: label -> its word, one token as it stands in the text, or a list of words, whose
        mean logit counts: `{"good": [" great", " fine"]}`.
    template: how the fields are written, such as "{text} All in all, it was"; in a decoder it may
        end in `{mask}`. None, without a verbalizer, for `text` alone or with `text_pair`.
    multi_label: any number of labels a row, the list `labels`, instead of the one `label`; each is
        decided by itself (a sigmoid), by a trained head.
    class_weight: label -> the weight of its rows in the loss, 1 for a label left out; or
        "balanced", n / (C · n_label) with the counts of the training data (`prepare`). With
        `multi_label` the weight of the rows that have it against those that do not, of which
        "balanced" makes equals: n_without / n_with.
    metric: the primary metric. "f1" is that of the second of two labels, "micro_f1" is for
        `multi_label`, where "accuracy" counts rows of which every label is right.
    auxiliary: with a verbalizer, the share of the loss, in training, that is for predicting the
        text itself: in a decoder token by token, in an encoder 15 % of it, hidden from the base.
    temperature: T, by which `scores` are made softer.
    """

    name: ClassVar[str] = "classify"

    labels: tuple[str, ...] | None = None
    label_names: dict[str, str] | None = None
    verbalizer: dict[str, str | list[str]] | None = None
    multi_label: bool = False
    class_weight: Literal["balanced"] | dict[str, float] | None = None
    metric: metrics.ClassificationMetric = "accuracy"
    auxiliary: Share = 0.0
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0

    def __post_init__(self) -> None:
        if isinstance(self.labels, list | tuple):
            self.labels = tuple(map(label_name, self.labels))
        if isinstance(self.verbalizer, Mapping):
            self.verbalizer = {label_name(key): word for key, word in self.verbalizer.items()}
        if isinstance(self.label_names, Mapping):
            self.label_names = {label_name(key): name for key, name in self.label_names.items()}
        if isinstance(self.class_weight, Mapping):
            self.class_weight = {label_name(key): w for key, w in self.class_weight.items()}
        super().__post_init__()
        self._weight: Tensor | None = None
        if self.verbalizer is not None:
            if self.template is None:
                raise TaskError(
                    "classify: a verbalizer needs a template, such as '{text} All in all, it was'"
                )
            if self.labels is not None and set(self.labels) != set(self.verbalizer):
                raise TaskError("classify: the verbalizer must have a word for each of the labels")
            for name, word in self.verbalizer.items():
                if not cloze.words_of(word):
                    raise TaskError(f"classify: the verbalizer has no word for the label {name!r}")
        elif self.auxiliary:
            raise TaskError("classify: auxiliary needs a verbalizer; a trained head reads no words")
        if self.multi_label and self.verbalizer is not None:
            raise TaskError("classify: multi_label takes a trained head; leave the verbalizer out")
        if self.metric not in (MULTI if self.multi_label else SINGLE):
            raise TaskError(
                f"classify: metric={self.metric!r} is for "
                f"{'one label a row' if self.multi_label else 'multi_label'}"
            )
        if self._given is not None:
            self._check_labels(self._given)

    @property
    def _given(self) -> tuple[str, ...] | None:
        """The labels in their order, where the fields say them."""
        if self.labels is not None:
            return self.labels
        if self.verbalizer is not None:
            return tuple(self.verbalizer)
        return None if self.label_names is None else tuple(dict.fromkeys(self.label_names.values()))

    def _check_labels(self, names: Sequence[str]) -> None:
        """Raise TaskError unless these can be the labels; fix the weights that are given."""
        for name in names:
            if names.count(name) > 1:
                raise TaskError(f"classify: label {name!r} is there twice")
        if not 2 <= len(names) <= MOST_LABELS:
            raise TaskError(f"classify takes from 2 to {MOST_LABELS} labels, not {len(names)}")
        if self.metric == "f1" and len(names) > 2:
            raise TaskError(
                f"classify: metric='f1' is for two labels, not {len(names)}; take 'macro_f1'"
            )
        for name in (self.label_names or {}).values():
            if name not in names:
                raise TaskError(
                    f"classify: label_names makes a label {name!r}, which is none of the labels"
                    f"{nearest(name, names)}"
                )
        if isinstance(self.class_weight, dict):
            for name, weight in self.class_weight.items():
                if name not in names:
                    raise TaskError(
                        f"classify: class_weight has a label {name!r}, which is none of the labels"
                        f"{nearest(name, names)}"
                    )
                if not 0 < weight < float("inf"):
                    raise TaskError(f"classify: class_weight of {name!r} is {weight}, not above 0")
            self._weight = torch.tensor([float(self.class_weight.get(name, 1)) for name in names])

    @property
    def names(self) -> tuple[str, ...]:
        """The labels in their order. Raises TaskError while they are not known."""
        if self._given is not None:
            return self._given
        raise TaskError(
            "classify: the labels are not known yet; give labels (--task.labels), or, in Python, "
            "call prepare(training examples)"
        )

    def head(self) -> Head | None:
        """See `Task`."""
        return None if self.verbalizer is not None else Head(labels=self.names)

    def adopt(self, labels: tuple[str, ...]) -> None:
        """See `Task`."""
        if self._given is None:
            self.labels = labels

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Task`."""
        names = Template(self.template or "{text}").names
        return (*(name for name in names if name != "mask"), self._field)

    @property
    def gold(self) -> tuple[str, ...]:
        """See `Task`."""
        return (self._field,)

    @property
    def _field(self) -> str:
        """The field that holds what is right."""
        return "labels" if self.multi_label else "label"

    def prepare(self, examples: Iterable[Example]) -> None:
        """Take the label set from the training examples, unless it was given; count the labels."""
        if self._given is not None and self.class_weight != "balanced":
            return
        counts, rows = Counter[str](), 0
        for example in examples:
            counts.update(self._gold(example))
            rows += 1
        if self._given is None:
            self._check_labels(tuple(counts))
            self.labels = tuple(sorted(counts))
        if self.class_weight == "balanced":
            self._weight = torch.tensor([self._balance(counts, name, rows) for name in self.names])

    def _balance(self, counts: Counter[str], name: str, rows: int) -> float:
        """The weight of a label that is there so often; 1 where it is never, or always."""
        own = counts[name]
        if self.multi_label:
            return (rows - own) / own if 0 < own < rows else 1.0
        return rows / len(counts) / own if own else 1.0

    def _gold(self, example: Example) -> list[str]:
        """The names of the labels that an example has. Raises DataError."""
        given: list[Value] = (
            list_of(example, "labels") if self.multi_label else [field_of(example, "label")]
        )
        for value in given:
            if not isinstance(value, str | int | float):
                raise DataError(
                    f"{example.where}: a label is {kind_of(value)}, not text or a number"
                )
        names = [label_name(value) for value in given]
        if "" in names:
            raise DataError(f"{example.where}: its label is empty")
        renamed = self.label_names or {}
        return list(dict.fromkeys(renamed.get(name, name) for name in names))

    def stratum(self, example: Example) -> str | None:
        """See `Task`."""
        return None if self.multi_label else self._gold(example)[0]

    def _numbers(self, example: Example, numbers: Mapping[str, int]) -> list[int]:
        """The numbers of the labels that an example has. Raises DataError for an unknown one."""
        gold = self._gold(example)
        for name in gold:
            if name not in numbers:
                known = nearest(name, numbers)
                raise DataError(f"{example.where}: there is no label {name!r}{known}")
        return [numbers[name] for name in gold]

    # ----------------------------------------------------------------- its model

    def check(self, bound: Bound, model: PreTrainedModel) -> None:
        """See `Task`."""
        kind, template = bound.chart.kind, self.template
        self._kind = kind
        if self.verbalizer is not None:
            assert template is not None
            need_language_head(model, "a verbalizer")
            auxiliary.check(self.auxiliary, bound)
            if kind == "encoder-decoder" and model.config.decoder_start_token_id is None:
                raise TaskError("the model's config has no decoder_start_token_id")
            self._words = cloze.Words.of(self.verbalizer, self.names, bound)
        self._blank: int | None = None
        if template is not None:
            worded = self.verbalizer is not None
            template, self._blank = cloze.written(template, bound, worded)
        self._reader = Reader.of(bound, template, self.truncate)

    # ---------------------------------------------------------------- arithmetic

    def _encode(self, examples: Sequence[Example], first: int) -> list[Row]:
        numbers = {name: number for number, name in enumerate(self.names)}
        read = self._reader.read(examples, [self.bound.limit] * len(examples))
        rows = []
        for place, (example, encoded) in enumerate(zip(examples, read, strict=True)):
            labels = self._labels(example, numbers)
            if self._blank is not None and encoded.ids.count(self._blank) != 1:
                raise DataError(f"{example.where}: its text holds a mask token of its own")
            ids = encoded.ids
            rows.append(Row(ids, labels, first + place, example.where, len(ids), encoded.types))
        return rows

    def _labels(self, example: Example, numbers: Mapping[str, int]) -> list | None:
        """What a row learns: its labels' numbers, or the scores of all labels; None for nothing."""
        scores = example.fields.get("scores")
        if not isinstance(scores, list) or self.multi_label:
            return self._numbers(example, numbers) if self._field in example.fields else None
        if self.class_weight is not None:
            raise TaskError("classify: class_weight is for rows with a label; here are scores")
        plain = all(isinstance(one, int | float) and math.isfinite(one) for one in scores)
        if len(scores) != len(numbers) or not plain:
            raise DataError(
                f"{example.where}: scores are {len(numbers)} numbers here, one for each label, not "
                f"{scores!r:.80}"
            )
        return [float(one) for one in scores]

    def collate(self, rows: Sequence[Row]) -> Batch:
        """See `Task`."""
        texts = [row.input_ids for row in rows]
        read = [Encoded(row.input_ids, row.token_type_ids) for row in rows]
        batch = stacked(read, self.bound.pad)
        if self.verbalizer is not None and self._kind != "encoder-decoder":
            # Where in the flat [B·T] the word is read off.
            width = batch["input_ids"].shape[1]
            blank = self._blank
            at = [len(ids) - 1 if blank is None else ids.index(blank) for ids in texts]
            batch["positions"] = torch.tensor(at) + torch.arange(len(rows)) * width
        if labelled(rows):
            given = [row.labels or [] for row in rows]
            if self.multi_label:
                batch["labels"] = torch.zeros(len(rows), len(self.names))
                for place, labels in enumerate(given):
                    batch["labels"][place, labels] = 1
            elif len(set(map(len, given))) > 1:
                odd = next(row for row in rows if len(row.labels or []) == 1)
                raise DataError(f"{odd.where}: it has a label, and others here have scores")
            else:  # [B, C] of scores, [B] of labels
                batch["labels"] = torch.tensor(given).squeeze(1)
        return batch

    def logits(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The scores of the labels in the order of `names`, `[B, C]`, fp32."""
        if self.verbalizer is not None:
            return self._worded(model, self._hidden(model, batch), batch)
        need_head(model, Head(labels=self.names))
        inputs = _inputs(batch)
        states, mask = head_inputs(model, self.chart(model), **inputs)
        if self._blank is not None:
            mask = (inputs["input_ids"] == self._blank).long()
        return classify_by_head(model, states, mask).float()

    def _hidden(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The last states that the language-model head may read, `[B·T, D]`.

        Of an encoder–decoder the one in front of the word, `[B, D]`.
        """
        inputs = _inputs(batch)
        if self._kind != "encoder-decoder":
            return self.chart(model).last_hidden_state(model, **inputs).flatten(0, 1)
        begin = [model.config.decoder_start_token_id]
        begin += [] if self._blank is None else [self._blank]
        ids = batch["input_ids"]
        inputs["decoder_input_ids"] = ids.new_tensor(begin).expand(len(ids), -1)
        return self.chart(model).last_hidden_state(model, **inputs)[:, -1]

    def _worded(self, model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
        """The scores of the labels' words, `[B, C]`, fp32, from what `_hidden` returned."""
        if self._kind != "encoder-decoder":
            hidden = hidden.index_select(0, batch["positions"])
        return self._words.scores(self.chart(model).logits(model, hidden))

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """See `Task`: cross entropy over the labels, and how many rows there are.

        Of `scores`, how far the softened distributions are apart (`distil`).
        Of `multi_label`, the mean of the labels' binary cross entropies. Weights are not divided
        out: "balanced" ones have a mean of 1 over the training data where a row has one label.
        """
        labels = need_labels(batch, "labels")
        if not auxiliary.wanted(self.auxiliary):
            return self._off(self.logits(model, batch), labels), len(labels)
        batch, asked = auxiliary.ask(self.bound, batch)
        hidden = self._hidden(model, batch)
        loss = self._off(self._worded(model, hidden, batch), labels)
        text = auxiliary.own(asked, self.chart(model), model, hidden)
        return auxiliary.mixed(self.auxiliary, loss, text), len(labels)

    def text_loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """What `auxiliary` asks of the rows' text: each row's mean over its tokens, summed."""
        batch, asked = auxiliary.ask(self.bound, batch)
        return auxiliary.own(asked, self.chart(model), model, self._hidden(model, batch))

    def _off(self, logits: Tensor, labels: Tensor) -> Tensor:
        """How far the scores `[B, C]` are off the labels, summed."""
        if labels.dim() == 2 and not self.multi_label:
            return distilled(logits, labels, self.temperature)
        if self.class_weight is not None and self._weight is None:
            raise TaskError(
                "classify: class_weight='balanced' needs counts; call prepare(training examples)"
            )
        weight = None if self._weight is None else self._weight.to(logits.device)
        if self.multi_label:
            each = F.binary_cross_entropy_with_logits(
                logits, labels, pos_weight=weight, reduction="none"
            )
            return each.mean(1).sum()
        return F.cross_entropy(logits, labels, weight, reduction="sum")

    @torch.no_grad()
    def predict(self, model: PreTrainedModel, batch: Batch) -> list[Prediction]:
        """See `Task`: the name of the most likely label, or those likelier than not."""
        logits = self.logits(model, batch)
        return self._named(_either(logits).argmax(-1) if self.multi_label else logits.argmax(1))

    @torch.no_grad()
    def ballot(
        self, model: PreTrainedModel, batch: Batch, members: int
    ) -> tuple[list[Prediction], list[Prediction]]:
        """See `Task`: of labels with equally many votes the one with the highest mean logit.

        Of `multi_label`, a vote on every label.
        """
        logits = self.logits(model, batch)
        said, won = majority(_either(logits) if self.multi_label else logits, members)
        return self._named(said), self._named(won)

    def _named(self, said: Tensor) -> list[Prediction]:
        """The name of each label `[B]`, or the names of those that are 1 `[B, C]`."""
        if not self.multi_label:
            return [self.names[best] for best in said.tolist()]
        return [
            [name for name, yes in zip(self.names, row, strict=True) if yes]
            for row in said.tolist()
        ]

    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        """See `Task`."""
        gold = [self._gold(example) for example in examples]
        if self.multi_label:
            return metrics.multi_label(predictions, gold, self.names)
        positive = self.names[1] if len(self.names) == 2 else None
        return metrics.classification(predictions, [name for (name,) in gold], positive=positive)

    def confusion(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, dict[str, int]]:
        """See `Task`."""
        if self.multi_label:
            return {}
        numbers = {name: number for number, name in enumerate(self.names)}
        gold = [self.names[self._numbers(example, numbers)[0]] for example in examples]
        counts = metrics.confusion(predictions, gold, self.names)
        return {
            name: dict(zip(self.names, row, strict=True))
            for name, row in zip(self.names, counts, strict=True)
        }


def _inputs(batch: Batch) -> Batch:
    """What of a batch the model reads."""
    return {name: batch[name] for name in INPUTS if name in batch}


def _either(logits: Tensor) -> Tensor:
    """Logits `[B, C]` of yes, as logits of no and yes, `[B, C, 2]`."""
    return torch.stack([torch.zeros_like(logits), logits], -1)
