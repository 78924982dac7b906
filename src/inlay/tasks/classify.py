"""classify: one text, or a pair -> a label; by a word of the language model, or a trained head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from inlay.data import Example, Value
from inlay.errors import DataError, TaskError, nearest
from inlay.heads import classify as classify_by_head
from inlay.methods.head import Head
from inlay.tasks import auxiliary, metrics
from inlay.tasks.auxiliary import Share
from inlay.tasks.base import (
    Batch,
    Bound,
    Prediction,
    Row,
    Task,
    field_of,
    labelled,
    majority,
    need_head,
    need_labels,
    need_language_head,
    with_virtual,
)
from inlay.tasks.reader import INPUTS, Encoded, Reader, stacked
from inlay.template import Template

MOST_LABELS = 1000
MASK = "{mask}"


def label_name(value: Value) -> str:
    """A label as text: 1, 1.0 and "1" are one label, and so are true and "true"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


@dataclass(kw_only=True)
class Classify(Task):
    """One text, or a pair -> a label.

    With `verbalizer` the language-model head decides: the label wins whose word is the most
    likely token at one position, behind the text in a decoder, at `{mask}` in an encoder, and at
    the beginning of the decoder's text in an encoder–decoder. Without it a trained head decides,
    a `Head(labels=...)` in the inlay, which must name the same labels in the same order. In an
    encoder it reads the state at `{mask}` where the template has one.

    labels: the names of the labels; None takes them from the verbalizer or, sorted, from the
        training data (`prepare`).
    verbalizer: label -> its word, one token as it stands in the text: `{"good": " great"}`.
    template: how the fields are written, such as "{text} All in all, it was". None, without a
        verbalizer, for `text` alone or with `text_pair`.
    metric: the primary metric.
    auxiliary: with a verbalizer, the share of the loss, in training, that is for predicting the
        text itself: in a decoder token by token, in an encoder 15 % of it, hidden from the base.
    """

    name: ClassVar[str] = "classify"

    labels: tuple[str, ...] | None = None
    verbalizer: dict[str, str] | None = None
    template: str | None = None
    metric: metrics.ClassificationMetric = "accuracy"
    auxiliary: Share = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.labels, list | tuple):
            self.labels = tuple(map(label_name, self.labels))
        if isinstance(self.verbalizer, Mapping):
            self.verbalizer = {label_name(key): word for key, word in self.verbalizer.items()}
        super().__post_init__()
        if self.template is not None and set(Template(self.template).names) <= {"mask"}:
            raise TaskError(f"classify: template {self.template!r} names no {{column}}")
        if self.verbalizer is not None:
            if self.template is None:
                raise TaskError(
                    "classify: a verbalizer needs a template, such as '{text} All in all, it was'"
                )
            if self.labels is not None and set(self.labels) != set(self.verbalizer):
                raise TaskError(
                    "classify: the verbalizer must have one word for each of the labels"
                )
        elif self.auxiliary:
            raise TaskError("classify: auxiliary needs a verbalizer; a trained head reads no words")
        if self.labels is not None or self.verbalizer is not None:
            _check_labels(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The labels in their order. Raises TaskError while they are not known."""
        if self.labels is not None:
            return self.labels
        if self.verbalizer is not None:
            return tuple(self.verbalizer)
        raise TaskError(
            "classify: the labels are not known yet; give labels=[...], or call "
            "prepare(training examples)"
        )

    def head(self) -> Head | None:
        """See `Task`."""
        return None if self.verbalizer is not None else Head(labels=self.names)

    def adopt(self, labels: tuple[str, ...]) -> None:
        """See `Task`."""
        if self.labels is None and self.verbalizer is None:
            self.labels = labels

    @property
    def virtual(self) -> int:
        """See `Task`."""
        return 0 if self.template is None else Template(self.template).virtual

    def place(self, virtual: int, front: int, examples: Sequence[Example]) -> None:
        """See `Task`."""
        pairs = any("text_pair" in example.fields for example in examples)
        own = "{text} {text_pair}" if pairs else "{text}"
        self.template = with_virtual(self.template or own, virtual, front)

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Task`."""
        names = Template(self.template or "{text}").names
        return (*(name for name in names if name != "mask"), "label")

    def prepare(self, examples: Iterable[Example]) -> None:
        """Take the label set from the training examples, unless it was given."""
        if self.labels is None and self.verbalizer is None:
            found = {label_name(field_of(example, "label")) for example in examples}
            _check_labels(tuple(found))
            self.labels = tuple(sorted(found))

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
            self._words = _word_ids([self.verbalizer[name] for name in self.names], bound)
        self._masked = (
            template is not None
            and kind == "encoder"
            and (self.verbalizer is not None or MASK in template)
        )
        if template is not None and (self._masked or MASK in template):
            template = _with_mask(template, bound)
        self._reader = Reader.of(bound, template, self.truncate)

    # ---------------------------------------------------------------- arithmetic

    def _encode(self, examples: Sequence[Example], first: int) -> list[Row]:
        numbers = {name: number for number, name in enumerate(self.names)}
        read = self._reader.read(examples, [self.bound.limit] * len(examples))
        rows = []
        for place, (example, encoded) in enumerate(zip(examples, read, strict=True)):
            labels = None
            if "label" in example.fields:
                label = label_name(example.fields["label"])
                if label not in numbers:
                    known = nearest(label, numbers)
                    raise DataError(f"{example.where}: there is no label {label!r}{known}")
                labels = [numbers[label]]
            if self._masked and encoded.ids.count(self._mask_id) != 1:
                raise DataError(f"{example.where}: its text holds a mask token of its own")
            ids = encoded.ids
            rows.append(Row(ids, labels, first + place, example.where, len(ids), encoded.types))
        return rows

    @property
    def _mask_id(self) -> int:
        return self.bound.tokenizer.mask_token_id

    def collate(self, rows: Sequence[Row]) -> Batch:
        """See `Task`."""
        texts = [row.input_ids for row in rows]
        read = [Encoded(row.input_ids, row.token_type_ids) for row in rows]
        batch = stacked(read, self.bound.pad)
        if self.verbalizer is not None and self._kind != "encoder-decoder":
            # Where in the flat [B·T] the word is read off.
            width = batch["input_ids"].shape[1]
            at = [ids.index(self._mask_id) if self._masked else len(ids) - 1 for ids in texts]
            batch["positions"] = torch.tensor(at) + torch.arange(len(rows)) * width
        if labelled(rows):
            batch["labels"] = torch.tensor([row.labels[0] for row in rows if row.labels])
        return batch

    def logits(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The scores of the labels in the order of `names`, `[B, C]`, fp32."""
        if self.verbalizer is not None:
            return self._worded(model, self._hidden(model, batch), batch)
        need_head(model, Head(labels=self.names))
        inputs = _inputs(batch)
        states, mask = self.chart(model).encoded(model, **inputs)
        if self._masked:
            mask = (inputs["input_ids"] == self._mask_id).long()
        return classify_by_head(model, states, mask).float()

    def _hidden(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The last states that the language-model head may read, `[B·T, D]`."""
        inputs = _inputs(batch)
        if self._kind == "encoder-decoder":
            ids, start = batch["input_ids"], model.config.decoder_start_token_id
            inputs["decoder_input_ids"] = ids.new_full((len(ids), 1), start)
        return self.chart(model).hidden(model, **inputs).flatten(0, 1)

    def _worded(self, model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
        """The scores of the labels' words, `[B, C]`, fp32, from states `[B·T, D]`."""
        if self._kind != "encoder-decoder":  # which writes one word and nothing else
            hidden = hidden.index_select(0, batch["positions"])
        logits = self.chart(model).logits(model, hidden)
        return logits.index_select(1, self._words.to(logits.device)).float()

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """See `Task`: cross entropy over the labels, and how many rows there are."""
        labels = need_labels(batch, "labels")
        batch, asked = auxiliary.ask(self.auxiliary, self.bound, batch)
        if asked is None:
            return F.cross_entropy(self.logits(model, batch), labels, reduction="sum"), len(labels)
        hidden = self._hidden(model, batch)
        loss = F.cross_entropy(self._worded(model, hidden, batch), labels, reduction="sum")
        chart = self.chart(model)
        return auxiliary.joined(self.auxiliary, loss, asked, chart, model, hidden), len(labels)

    @torch.no_grad()
    def predict(self, model: PreTrainedModel, batch: Batch) -> list[Prediction]:
        """See `Task`: the name of the most likely label."""
        return [self.names[best] for best in self.logits(model, batch).argmax(1).tolist()]

    @torch.no_grad()
    def ballot(
        self, model: PreTrainedModel, batch: Batch, members: int
    ) -> tuple[list[Prediction], list[Prediction]]:
        """See `Task`: of labels with equally many votes the one with the highest mean logit."""
        said, won = majority(self.logits(model, batch), members)
        return [self.names[i] for i in said.tolist()], [self.names[i] for i in won.tolist()]

    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        """See `Task`."""
        gold = [label_name(field_of(example, "label")) for example in examples]
        return metrics.classification(predictions, gold)


def _inputs(batch: Batch) -> Batch:
    """What of a batch the model reads."""
    return {name: batch[name] for name in INPUTS if name in batch}


def _check_labels(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise TaskError(f"classify: label {name!r} is there twice")
    if not 2 <= len(names) <= MOST_LABELS:
        raise TaskError(f"classify takes from 2 to {MOST_LABELS} labels, not {len(names)}")


def _with_mask(template: str, bound: Bound) -> str:
    """The template with the tokenizer's own mask token, which an encoder needs."""
    masks = sum(name == "mask" for _, name in Template(template).parts)
    if bound.chart.kind != "encoder":
        if masks:
            raise TaskError(
                f"template {template!r}: {MASK} is for encoders; here the word comes by itself, "
                "so leave it out"
            )
        return template
    if masks != 1:
        raise TaskError(f"template {template!r}: an encoder needs {MASK} where the word stands")
    if bound.tokenizer.mask_token is None:
        raise TaskError("{mask} needs a tokenizer with a mask token")
    return template.replace(MASK, bound.tokenizer.mask_token)


def _word_ids(words: Sequence[str], bound: Bound) -> Tensor:
    """The one token of each word, `[C]`."""
    ids: list[int] = []
    for word in words:
        tokens = bound.tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(tokens) != 1:
            spelled = bound.tokenizer.convert_ids_to_tokens(tokens)
            raise TaskError(f"the word {word!r} must be one token, and is {len(tokens)}: {spelled}")
        if tokens[0] == bound.tokenizer.unk_token_id:
            raise TaskError(f"the tokenizer does not know the word {word!r}")
        if tokens[0] in ids:
            other = words[ids.index(tokens[0])]
            raise TaskError(f"the words {other!r} and {word!r} are the same token")
        ids += tokens
    return torch.tensor(ids)
