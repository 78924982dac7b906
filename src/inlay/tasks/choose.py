"""choose: a premise and several choices -> the right one; by likelihood, or by a trained head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from inlay.data.dataset import Example
from inlay.data.raw import kind_of
from inlay.data.template import Template
from inlay.errors import DataError, TaskError
from inlay.heads import classify as classify_by_head
from inlay.heads import head_inputs
from inlay.methods.head import Head
from inlay.tasks import metrics
from inlay.tasks.base import (
    Batch,
    Bound,
    Prediction,
    Row,
    field_of,
    labelled,
    list_of,
    majority,
    mask_of,
    need_head,
    need_labels,
    need_language_head,
    padded,
)
from inlay.tasks.loss import token_likelihoods
from inlay.tasks.rows import INPUTS, Encoded, Reader, stacked
from inlay.tasks.templated import Templated

SCORE = ("score",)
"""The one label of the head: how well a choice suits its premise."""


@dataclass(frozen=True, slots=True)
class Choices(Row):
    """A row of k texts.

    texts: what the model reads, once a choice. targets: the tokens of each choice; empty where a
    head decides.
    """

    texts: tuple[Encoded, ...] = ()
    targets: tuple[list[int], ...] = ()


@dataclass(kw_only=True)
class Choose(Templated):
    """A premise and k choices -> the number of the best choice, from 0 on; k may differ by row.

    Each choice is put behind the premise and scored, and the scores of a row are compared: by
    their softmax in training, by the highest one in prediction. `label` is the number of the right
    choice, from 0 on, or its text.

    by: what scores: a trained "head" with one output, a `Head(labels=("score",))` in the inlay; or
        the language-model head of a decoder or an encoder–decoder, as the "sum" or the "mean" of
        the log likelihoods of the choice's tokens. The end token is none of them.
    template: how the premise is written, such as "{premise} What was the {question}?"; None for
        "{text}". The choice comes behind it: after a space where a language model goes on writing,
        as the second text of a pair where a head reads.
    choices: the fields that hold one choice each, such as ["choice1", "choice2"]; None for the
        field `choices`, a list.
    metric: the primary metric.
    """

    name: ClassVar[str] = "choose"

    by: Literal["head", "sum", "mean"] = "head"
    choices: tuple[str, ...] | None = None
    metric: Literal["accuracy"] = "accuracy"

    def __post_init__(self) -> None:
        if isinstance(self.choices, list | tuple):
            self.choices = tuple(self.choices)
        super().__post_init__()
        if self.choices is not None and len(set(self.choices)) < max(2, len(self.choices)):
            raise TaskError(
                "choose: choices are the names of at least two different fields, not "
                f"{list(self.choices)}"
            )
        for name in ("choice", "mask"):
            if name in self._premise.names:
                raise TaskError(
                    f"choose: the choice comes behind the template; leave {{{name}}} out"
                )

    @property
    def _premise(self) -> Template:
        return Template(self.template or self.bare(()))

    def head(self) -> Head | None:
        """See `Task`."""
        return Head(labels=SCORE) if self.by == "head" else None

    def bare(self, examples: Sequence[Example]) -> str:
        """See `Templated`."""
        return "{text}"

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Task`."""
        return (*self._premise.names, *(self.choices or ("choices",)), "label")

    @property
    def gold(self) -> tuple[str, ...]:
        """See `Task`."""
        return (*(self.choices or ("choices",)), "label")

    # ----------------------------------------------------------------- its model

    def check(self, bound: Bound, model: PreTrainedModel) -> None:
        """See `Task`."""
        kind, premise = bound.chart.kind, self._premise
        self._decoder = kind == "decoder"
        if self.by == "head":
            # A pair of texts has no place for virtual tokens, one text has.
            template = f"{premise.text} {{choice}}" if premise.virtual_tokens else None
        else:
            if kind == "encoder":
                raise TaskError(
                    f"choose: {type(model).__name__} is an encoder, which gives no likelihood to "
                    "a text that goes on; use by='head'"
                )
            need_language_head(model, f"choosing by the {self.by} of log likelihoods")
            if not self._decoder:
                self._start = model.config.decoder_start_token_id
                if self._start is None:
                    raise TaskError("the model's config has no decoder_start_token_id")
            template = premise.text
        self._reader = Reader.of(bound, template, self.truncate)

    # ---------------------------------------------------------------- arithmetic

    def _encode(self, examples: Sequence[Example], first: int) -> list[Row]:
        offered = [self._choices(example) for example in examples]
        made = self._pairs(examples, offered) if self.by == "head" else self._written(examples, offered)  # fmt: skip  # noqa: E501
        rows: list[Row] = []
        for place, (example, choices) in enumerate(zip(examples, offered, strict=True)):
            texts, targets = made[place]
            labels = [_gold(example, choices)] if "label" in example.fields else None
            ids = [token for text in texts for token in text.ids]
            ids += [token for target in targets for token in target]
            longest = max(map(len, (text.ids for text in texts)))
            longest += max(map(len, targets), default=0)
            rows.append(
                Choices(
                    ids,
                    labels,
                    first + place,
                    example.where,
                    len(choices) * longest,
                    texts=tuple(texts),
                    targets=tuple(targets),
                )
            )
        return rows

    def _choices(self, example: Example) -> list[str]:
        """The choices of an example, k ≥ 2 texts."""
        given: list[Any]
        if self.choices is None:
            given = list_of(example, "choices")
        else:
            given = [field_of(example, name) for name in self.choices]
        if len(given) < 2:
            raise DataError(f"{example.where}: it has {len(given)} choices; a row needs at least 2")
        for number, choice in enumerate(given):
            if not isinstance(choice, str | int | float):
                raise DataError(
                    f"{example.where}: choice {number} is {kind_of(choice)}, not a text"
                )
            if not str(choice).strip():
                raise DataError(f"{example.where}: choice {number} is empty")
        return [str(choice) for choice in given]

    def _pairs(
        self, examples: Sequence[Example], offered: Sequence[Sequence[str]]
    ) -> list[tuple[list[Encoded], list[list[int]]]]:
        """Premise and choice as one input, once a choice, for a head to read."""
        pairs: list[Example] = []
        for example, choices in zip(examples, offered, strict=True):
            texts = self._texts(example)
            premise = {"text": self._premise.fill(texts)} if not self.virtual else texts
            second = "choice" if self.virtual else "text_pair"
            pairs += [Example({**premise, second: one}, example.where) for one in choices]
        read = iter(self._reader.read(pairs, [self.bound.limit] * len(pairs)))
        return [([next(read) for _ in choices], []) for choices in offered]

    def _written(
        self, examples: Sequence[Example], offered: Sequence[Sequence[str]]
    ) -> list[tuple[list[Encoded], list[list[int]]]]:
        """The premise once a choice, and the tokens of the choices. No choice is shortened."""
        tokenizer, limit = self.bound.tokenizer, self.bound.limit
        space = " " if self._decoder else ""
        flat = [space + choice for choices in offered for choice in choices]
        tokens = iter(tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"])
        targets = [[next(tokens) for _ in choices] for choices in offered]
        rooms: list[int | None] = []
        for example, own in zip(examples, targets, strict=True):
            self._texts(example)
            for number, target in enumerate(own):
                if not target:
                    raise DataError(f"{example.where}: choice {number} leaves no tokens")
            longest = max(map(len, own))
            room = None if limit is None else limit - longest
            if room is not None and room < (1 if self._decoder else 0):
                raise DataError(
                    f"{example.where}: its longest choice alone is {longest} tokens long where "
                    f"{limit} fit; shorten it"
                )
            rooms.append(room if self._decoder else limit)
        read = self._reader.read(examples, rooms)
        return [([one] * len(own), own) for one, own in zip(read, targets, strict=True)]

    def _texts(self, example: Example) -> dict[str, str]:
        """The free texts of the premise. Raises DataError where they are all empty."""
        texts = {name: str(field_of(example, name)) for name in self._premise.names}
        if not "".join(texts.values()).strip():
            raise DataError(f"{example.where}: its premise is empty")
        return texts

    def collate(self, rows: Sequence[Row]) -> Batch:
        """See `Task`. The texts of all rows are one batch, `[B·K, T]`, K for every row.

        K is the longest row's; a row of fewer choices repeats its first one, which does not count.
        """
        chosen = [row for row in rows if isinstance(row, Choices)]
        counts = torch.tensor([len(row.texts) for row in chosen])
        most = int(counts.max())
        texts = [text for row in chosen for text in _filled(row.texts, most)]
        targets = [target for row in chosen for target in _filled(row.targets, most)]
        pad = self.bound.pad
        if self.by == "head":
            batch = stacked(texts, pad)
        else:
            batch = self._continued([text.ids for text in texts], targets)
        batch["counts"] = counts
        if labelled(rows):
            batch["labels"] = torch.tensor([row.labels[0] for row in rows if row.labels])
        return batch

    def _continued(self, premises: Sequence[list[int]], targets: Sequence[list[int]]) -> Batch:
        """Premises `[B·K]` and what is scored behind them; their last token is never read."""
        pad = self.bound.pad
        if self._decoder:
            written = [[*a, *b[:-1]] for a, b in zip(premises, targets, strict=True)]
            batch = {"input_ids": padded(written, pad), "attention_mask": mask_of(written)}
            starts, width = [len(ids) - 1 for ids in premises], batch["input_ids"].shape[1]
        else:
            batch = {"input_ids": padded(premises, pad), "attention_mask": mask_of(premises)}
            shifted = [[self._start, *target[:-1]] for target in targets]
            batch["decoder_input_ids"] = padded(shifted, pad)
            starts, width = [0] * len(targets), batch["decoder_input_ids"].shape[1]
        # Where in the flat [B·K·T] a token of a choice is predicted, which, and of which choice.
        lengths = torch.tensor([len(target) for target in targets])
        batch["positions"] = torch.cat(
            [
                torch.arange(len(target)) + number * width + start
                for number, (start, target) in enumerate(zip(starts, targets, strict=True))
            ]
        )
        batch["targets"] = torch.tensor([token for target in targets for token in target])
        batch["owners"] = torch.arange(len(targets)).repeat_interleave(lengths)
        return batch

    def logits(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The scores of the choices, `[B, K]`, fp32; -inf where a row has fewer than K."""
        chart, counts = self.chart(model), batch["counts"]
        names = (*INPUTS, "decoder_input_ids")
        inputs = {name: batch[name] for name in names if name in batch}
        if self.by == "head":
            need_head(model, Head(labels=SCORE))
            scores = (
                classify_by_head(model, *head_inputs(model, chart, **inputs)).float().squeeze(1)
            )
        else:
            hidden = chart.last_hidden_state(model, **inputs).flatten(0, 1)
            hidden = hidden.index_select(0, batch["positions"])
            each = token_likelihoods(chart, model, hidden, batch["targets"])
            owners = batch["owners"]
            scores = each.new_zeros(len(inputs["input_ids"])).index_add(0, owners, each)
            scores = scores / owners.bincount() if self.by == "mean" else scores
        scores = scores.unflatten(0, (len(counts), -1))
        place = torch.arange(scores.shape[1], device=scores.device)
        return scores.masked_fill(place >= counts.to(scores.device)[:, None], -torch.inf)

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """See `Task`: cross entropy over each row's choices, and how many rows there are."""
        labels = need_labels(batch, "labels")
        return F.cross_entropy(self.logits(model, batch), labels, reduction="sum"), len(labels)

    @torch.no_grad()
    def predict(self, model: PreTrainedModel, batch: Batch) -> list[int]:
        """See `Task`: the number of the best choice, from 0 on."""
        return self.logits(model, batch).argmax(1).tolist()

    @torch.no_grad()
    def ballot(
        self, model: PreTrainedModel, batch: Batch, members: int
    ) -> tuple[list[int], list[int]]:
        """See `Task`: of choices with equally many votes the one with the highest mean score."""
        said, won = majority(self.logits(model, batch), members)
        return said.tolist(), won.tolist()

    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        """See `Task`."""
        gold = [_gold(example, self._choices(example)) for example in examples]
        return {"accuracy": metrics.accuracy(predictions, gold)}


def _filled(parts: Sequence[Any], count: int) -> list[Any]:
    """So many parts: these, and the first one again as often as it takes; none of none."""
    return [*parts, *[parts[0]] * (count - len(parts))] if parts else []


def _gold(example: Example, choices: Sequence[str]) -> int:
    """The number of the right choice, from 0 on."""
    label = field_of(example, "label")
    if isinstance(label, str) and label in choices:
        return choices.index(label)
    try:
        number = int(label) if not isinstance(label, bool) else -1
    except ValueError:
        number = -1
    if not 0 <= number < len(choices) or (not isinstance(label, str) and number != label):
        raise DataError(
            f"{example.where}: label {label!r:.80} is none of its choices, neither as a text nor "
            f"as a number from 0 to {len(choices) - 1}"
        )
    return number
