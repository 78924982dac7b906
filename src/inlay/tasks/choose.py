"""choose: a premise and several choices -> the right one; by likelihood, or by a trained head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.data.dataset import Example
from inlay.data.template import Template
from inlay.errors import DataError, TaskError
from inlay.methods.head import Head
from inlay.runtime.trained_heads import classify, head_inputs
from inlay.tasks import metrics
from inlay.tasks.base import Bound, Prediction
from inlay.tasks.choices import (
    ChoiceRow,
    ChooseBatch,
    choice_tokens,
    choices_of,
    filled,
    gold_choice,
)
from inlay.tasks.loss import token_likelihoods
from inlay.tasks.outputs import Scores
from inlay.tasks.reader import Encoded, Reader, text_inputs
from inlay.tasks.records import PREDICTION, Column, Mistake, Record, probabilities, surprise
from inlay.tasks.requirements import require_decoder_start, require_head, require_language_head
from inlay.tasks.rows import Row, field_of, have_labels, require_labels
from inlay.tasks.templated import Templated
from inlay.tasks.voting import majority

SCORE = ("score",)
"""The one label of the head: how well a choice fits its premise."""


@dataclass(kw_only=True)
class Choose(Templated[ChooseBatch, Scores]):
    """A premise and k choices -> the number of the best choice, from 0 on; k may differ by row.

    Each choice comes after the premise and is scored, and the scores of a row are compared: by
    their softmax in training, by the highest one in prediction. `label` is the number of the right
    choice, from 0 on, or its text.

    by: what scores: a trained "head" with one output, a `Head(labels=("score",))` in the inlay; or
        the language-model head of a decoder or an encoder–decoder, as the "sum" or the "mean" of
        the log likelihoods of the choice's tokens, without the end token.
    template: how the premise is written, such as "{premise} What was the {question}?"; None for
        "{text}". The choice comes after it: after a space where a language model continues the
        text, as the second text of a pair where a head reads it.
    choices: the fields that hold one choice each, such as ["choice1", "choice2"]; None for the
        field `choices`, a list.
    metric: the primary metric.
    """

    name: ClassVar[str] = "choose"
    calibrates: ClassVar[bool] = True

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
                    f"choose: the choice comes after the template; leave {{{name}}} out"
                )

    @property
    def _premise(self) -> Template:
        return Template(self.template or self.default_template(()))

    @override
    def head(self) -> Head | None:
        return Head(labels=SCORE) if self.by == "head" else None

    @override
    def default_template(self, examples: Sequence[Example]) -> str:
        return "{text}"

    @property
    @override
    def required_fields(self) -> tuple[str, ...]:
        return (*self._premise.names, *(self.choices or ("choices",)), "label")

    @property
    @override
    def gold_fields(self) -> tuple[str, ...]:
        return (*(self.choices or ("choices",)), "label")

    @override
    def check(self, example: Example) -> None:
        if set(self.choices or ("choices",)) <= example.fields.keys():
            choices = choices_of(example, self.choices)
            if "label" in example.fields:
                gold_choice(example, choices)

    # -------------------------------------------------------------------------------- its model

    @override
    def on_bind(self, bound: Bound, model: PreTrainedModel) -> None:
        kind, premise = bound.chart.kind, self._premise
        self._decoder_start: int | None = None
        template: str | None = premise.text
        if self.by == "head":
            # A pair of texts has no place for virtual tokens, one text has.
            template = f"{premise.text} {{choice}}" if premise.virtual_tokens else None
        elif kind == "encoder":
            raise TaskError(
                f"choose: {type(model).__name__} is an encoder, which gives no likelihood to the "
                "continuation of a text; use by='head'"
            )
        else:
            require_language_head(model, f"choosing by the {self.by} of log likelihoods")
            if kind == "encoder-decoder":
                self._decoder_start = require_decoder_start(model)
        self._reader = Reader.for_text(bound, template, self.truncate)

    # ---------------------------------------------------------------------------- its arithmetic

    @override
    def encode_some(self, examples: Sequence[Example], first_index: int) -> list[Row]:
        choices = [choices_of(example, self.choices) for example in examples]
        encode = self._encode_pairs if self.by == "head" else self._encode_continuations
        rows: list[Row] = []
        parts = zip(examples, choices, encode(examples, choices), strict=True)
        for index, (example, texts, (premises, targets)) in enumerate(parts, first_index):
            labels = [gold_choice(example, texts)] if "label" in example.fields else None
            ids = [token for premise in premises for token in premise.ids]
            ids += [token for target in targets for token in target]
            longest = max(len(premise.ids) for premise in premises)
            cost = len(texts) * (longest + max(map(len, targets), default=0))
            row = ChoiceRow(ids, labels, index, example.where, cost,
                            texts=tuple(premises), targets=tuple(targets))  # fmt: skip
            rows.append(row)
        return rows

    def _encode_pairs(
        self, examples: Sequence[Example], choices: Sequence[Sequence[str]]
    ) -> list[tuple[list[Encoded], list[list[int]]]]:
        """Premise and choice as one input, for a head to read, for each choice."""
        pairs: list[Example] = []
        for example, texts in zip(examples, choices, strict=True):
            fields = self._premise_fields(example)
            virtual = self.virtual_tokens > 0
            first = fields if virtual else {"text": self._premise.fill(fields)}
            name = "choice" if virtual else "text_pair"
            pairs += [Example({**first, name: choice}, example.where) for choice in texts]
        encoded = iter(self._reader.read(pairs, [self.bound.max_length] * len(pairs)))
        return [([next(encoded) for _ in texts], []) for texts in choices]

    def _encode_continuations(
        self, examples: Sequence[Example], choices: Sequence[Sequence[str]]
    ) -> list[tuple[list[Encoded], list[list[int]]]]:
        """The premise for each choice, and the tokens of the choices, which are never shortened."""
        tokenizer, limit = self.bound.tokenizer, self.bound.max_length
        decoder = self._decoder_start is None
        space = " " if decoder else ""
        texts = [space + choice for row_choices in choices for choice in row_choices]
        tokens = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
        targets = [[next(tokens) for _ in row_choices] for row_choices in choices]
        max_lengths: list[int | None] = []
        for example, row_targets in zip(examples, targets, strict=True):
            self._premise_fields(example)
            for number, target in enumerate(row_targets):
                if not target:
                    raise DataError(f"{example.where}: choice {number} leaves no tokens")
            longest = max(map(len, row_targets))
            room = None if limit is None else limit - longest
            if room is not None and room < (1 if decoder else 0):
                raise DataError(
                    f"{example.where}: its longest choice alone is {longest} tokens long and only "
                    f"{limit} fit; shorten it"
                )
            max_lengths.append(room if decoder else limit)
        premises = self._reader.read(examples, max_lengths)
        pairs = zip(premises, targets, strict=True)
        return [([premise] * len(row_targets), row_targets) for premise, row_targets in pairs]

    def _premise_fields(self, example: Example) -> dict[str, str]:
        """The texts of the premise by field. Raises DataError where they are all empty."""
        texts = {name: str(field_of(example, name)) for name in self._premise.names}
        if not "".join(texts.values()).strip():
            raise DataError(f"{example.where}: its premise is empty")
        return texts

    @override
    def collate(self, rows: Sequence[Row]) -> ChooseBatch:
        choice_rows = [row for row in rows if isinstance(row, ChoiceRow)]
        counts = torch.tensor([len(row.texts) for row in choice_rows])
        most, pad = int(counts.max()), self.bound.pad_id
        texts: list[Encoded] = [t for row in choice_rows for t in filled(row.texts, most)]
        labels = None
        if have_labels(rows):
            labels = torch.tensor([row.labels[0] for row in rows if row.labels])
        if self.by == "head":
            return ChooseBatch(text_inputs(texts, pad), counts, labels)
        targets = [target for row in choice_rows for target in filled(row.targets, most)]
        tokens = choice_tokens([text.ids for text in texts], targets, pad, self._decoder_start)
        return ChooseBatch(tokens.inputs, counts, labels, tokens)

    @override
    def outputs(self, model: PreTrainedModel, batch: ChooseBatch) -> Scores:
        """The scores of the choices, `[B, K]`; -inf where a row has fewer than K."""
        chart, counts, tokens = self.chart(model), batch.counts, batch.tokens
        if tokens is None:
            require_head(model, Head(labels=SCORE))
            states, mask = head_inputs(model, chart, **batch.inputs)
            scores = classify(model, states, mask).float().squeeze(1)
        else:
            hidden = chart.last_hidden_state(model, **batch.inputs).flatten(0, 1)
            hidden = hidden.index_select(0, tokens.positions)
            likelihoods = token_likelihoods(chart, model, hidden, tokens.targets)
            scores = likelihoods.new_zeros(len(batch.inputs["input_ids"]))
            scores = scores.index_add(0, tokens.owners, likelihoods)
            scores = scores / tokens.owners.bincount() if self.by == "mean" else scores
        scores = scores.unflatten(0, (len(counts), -1))
        number = torch.arange(scores.shape[1], device=scores.device)
        missing = number >= counts.to(scores.device)[:, None]
        return Scores(scores.masked_fill(missing, -torch.inf))

    @override
    def loss(self, outputs: Scores, batch: ChooseBatch) -> tuple[Tensor, int]:
        """Cross entropy over each row's choices, and how many rows there are."""
        labels = require_labels(batch.labels)
        return F.cross_entropy(outputs.scores, labels, reduction="sum"), len(labels)

    @torch.no_grad()
    @override
    def predict(self, model: PreTrainedModel, batch: ChooseBatch) -> list[int]:
        """The number of the best choice, from 0 on."""
        return self.outputs(model, batch).scores.argmax(1).tolist()

    @property
    @override
    def target_fields(self) -> tuple[str, ...]:
        return ("label",)

    @property
    @override
    def record_columns(self) -> tuple[Column, ...]:
        return (
            Column(PREDICTION, "integer", "the number of the best choice, from 0 on"),
            Column("choice", "text", "that choice"),
            Column("probability", "number", "its probability"),
            Column("probabilities", "numbers", "the probability of each choice"),
        )

    @torch.no_grad()
    @override
    def records(
        self, model: PreTrainedModel, batch: ChooseBatch, temperature: float = 1.0
    ) -> list[Record]:
        scores = self.outputs(model, batch).scores
        shares = probabilities(scores, temperature).tolist()
        rows = zip(scores.argmax(1).tolist(), shares, batch.counts.tolist(), strict=True)
        return [
            {PREDICTION: best, "choice": None, "probability": row_shares[best],
             "probabilities": row_shares[:count]}
            for best, row_shares, count in rows
        ]  # fmt: skip

    @override
    def merge_records(
        self, rows: Sequence[Row], records: Sequence[Record], examples: Sequence[Example]
    ) -> list[Record]:
        return [
            {**record, "choice": choices_of(example, self.choices)[record[PREDICTION]]}
            for record, example in zip(records, examples, strict=True)
        ]

    @override
    def class_scores(self, outputs: Scores, batch: ChooseBatch) -> tuple[Tensor, Tensor] | None:
        return None if batch.labels is None else (outputs.scores, batch.labels)

    @override
    def mistake(self, record: Record, example: Example) -> Mistake | None:
        """The cost is −log of the right choice's probability."""
        choices = choices_of(example, self.choices)
        gold = gold_choice(example, choices)
        if record[PREDICTION] == gold:
            return None
        return Mistake(surprise(record["probabilities"][gold]), choices[gold])

    @torch.no_grad()
    @override
    def vote(
        self, model: PreTrainedModel, batch: ChooseBatch, members: int
    ) -> tuple[list[int], list[int]]:
        """Of choices with equally many votes the one with the highest mean score wins."""
        votes, winners = majority(self.outputs(model, batch).scores, members)
        return votes.tolist(), winners.tolist()

    @override
    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        gold = [gold_choice(example, choices_of(example, self.choices)) for example in examples]
        return {"accuracy": metrics.accuracy(predictions, gold)}
