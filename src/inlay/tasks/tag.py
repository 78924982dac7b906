"""tag: words -> a tag for each, such as names of entities, parts of speech or semantic roles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.data.dataset import Example, Value
from inlay.data.labels import names_of_labels, other_names
from inlay.errors import DataError, TaskError, nearest
from inlay.methods.head import Head
from inlay.runtime.trained_heads import classify, token_states
from inlay.tasks import metrics
from inlay.tasks.base import Bound, Prediction, Task
from inlay.tasks.batch import Batch
from inlay.tasks.outputs import Scores
from inlay.tasks.records import (
    PREDICTION,
    Column,
    Mistake,
    Record,
    entities,
    probabilities,
    split_words,
)
from inlay.tasks.requirements import require_head
from inlay.tasks.rows import Row, have_labels, padded, padded_inputs, require_labels
from inlay.tasks.sentence import (
    NO_TOKEN,
    Sentence,
    first_tokens,
    gold_tags,
    sentence_of,
    tags_of,
    texts_in,
)
from inlay.tasks.spans import OUTSIDE, split_tag
from inlay.tasks.special_tokens import special_tokens_around
from inlay.tasks.voting import majority

NO_WORD = -2
"""What pads the positions of the words of a row."""


@dataclass(frozen=True, slots=True)
class TagRow(Row):
    """A row of words. words: the position of the first token of each, or `NO_TOKEN`."""

    words: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class TagBatch(Batch):
    """Sentences and the tags of their words.

    words: the position of the first token of each word, `NO_TOKEN`, or `NO_WORD`, `[B, W]`.
    positions: those of all N words with a token, in the flat `[B·T]`, `[N]`.
    labels: the numbers of the tags of all N words with a token, `[N]`; None without tags.
    """

    words: Tensor
    positions: Tensor
    labels: Tensor | None = None


@dataclass(kw_only=True)
class Tag(Task[TagBatch, Scores]):
    """`tokens`, a list of words -> `tags`, one for each, by a trained head on every position.

    The words are written with spaces between them. A word is tagged, and learned from, at its
    first token. A word without a token, because the tokenizer drops its characters or `truncate`
    has cut it off, is not learned from, and predicted as "O".

    A row may have a `predicate`, the number of a word from 0 on: the tags are then roles of that
    word, which is written before the sentence, where a decoder needs it, and in brackets within
    it, to tell it from equal words: "sat : the cat [ sat ] down".

    labels: the tags; None takes them from `label_names` or, sorted, from the training data.
    label_names: what the data calls a tag -> its name here: `["O", "B-PER", "I-PER"]` for the
        numbers from 0 on, or a mapping; any other tag, which is then a text, keeps its name.
    scheme: "spans" for tags that are "O", or a type after a letter, B-, I-, E- or S- (or those of
        IOB1, IOE, BILOU, BMES), and mean spans of words; "plain" for tags that mean themselves.
    metric: the primary metric; F1 is over spans, or over words that are not "O".
    """

    name: ClassVar[str] = "tag"
    calibrates: ClassVar[bool] = True

    labels: tuple[str, ...] | None = None
    label_names: dict[str, str] | None = None
    scheme: Literal["spans", "plain"] = "spans"
    metric: metrics.TaggingMetric = "f1"

    def __post_init__(self) -> None:
        if isinstance(self.labels, list | tuple):
            self.labels = tuple(self.labels)
        self.label_names = names_of_labels(self.label_names)
        super().__post_init__()
        if self.labels is None and self.label_names:
            self.labels = tuple(dict.fromkeys(self.label_names.values()))
        if self.labels is not None:
            self._check_labels(self.labels)

    def _known_labels(self) -> tuple[str, ...]:
        """The tags in their order. Raises TaskError while they are not known."""
        if self.labels is None:
            raise TaskError(
                "tag: the tags are not known yet; give labels (--task.labels), or, in Python, call "
                "prepare(training examples)"
            )
        return self.labels

    def _check_labels(self, labels: Sequence[str]) -> None:
        if not labels:
            raise TaskError("tag: there are no labels")
        for label in labels:
            if labels.count(label) > 1:
                raise TaskError(f"tag: label {label!r} is given twice")
            if self.scheme == "spans":
                try:
                    split_tag(label)
                except ValueError:
                    raise TaskError(
                        f"tag: label {label!r} is neither 'O' nor a type after B-, I-, E- or S-; "
                        "scheme='plain' takes any tags"
                    ) from None

    @override
    def head(self) -> Head:
        return Head(labels=self._known_labels(), pool="each")

    @override
    def set_labels(self, labels: tuple[str, ...]) -> None:
        if self.labels is None:
            self.labels = labels

    @property
    @override
    def required_fields(self) -> tuple[str, ...]:
        return ("tokens", "tags")

    @property
    @override
    def gold_fields(self) -> tuple[str, ...]:
        return ("tags",)

    @override
    def prepare(self, examples: Iterable[Example]) -> None:
        """Take the tags from the training examples, unless they are given."""
        if self.labels is None:
            labels = sorted({tag for example in examples for tag in self._tags(example)})
            self._check_labels(labels)
            self.labels = tuple(labels)

    @override
    def check(self, example: Example) -> None:
        if "tokens" in example.fields:
            sentence_of(example)
        if "tags" in example.fields:
            self._tags(example)

    def _tags(self, example: Example) -> list[str]:
        """The gold tags, one for every word. Raises DataError, which names the example."""
        return tags_of(example, self.label_names)

    @override
    def on_bind(self, bound: Bound, model: PreTrainedModel) -> None:
        if not bound.tokenizer.is_fast:
            raise TaskError(f"tag needs a fast tokenizer, not {type(bound.tokenizer).__name__}")
        before, after = special_tokens_around(bound.tokenizer)
        self._around = (before, [] if bound.chart.kind == "decoder" else after)

    # ---------------------------------------------------------------------------- its arithmetic

    @override
    def encode_some(self, examples: Sequence[Example], first_index: int) -> list[Row]:
        numbers = {label: number for number, label in enumerate(self._known_labels())}
        sentences = [sentence_of(example) for example in examples]
        encoding = self.bound.tokenizer(
            [sentence.text for sentence in sentences],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        before, after = self._around
        rows: list[Row] = []
        columns = (examples, sentences, encoding["input_ids"], encoding["offset_mapping"])
        for index, (example, sentence, ids, offsets) in enumerate(
            zip(*columns, strict=True), first_index
        ):
            places = self._fitting(example, sentence, offsets)
            tokens = [*before, *(ids[place] for place in places), *after]
            words = first_tokens([offsets[n] for n in places], sentence.words, len(before))
            labels = None
            if "tags" in example.fields:
                labels = [_number(example, tag, numbers) for tag in self._tags(example)]
            rows.append(TagRow(tokens, labels, index, example.where, len(tokens), words=words))
        return rows

    def _fitting(
        self, example: Example, sentence: Sentence, offsets: Sequence[tuple[int, int]]
    ) -> list[int]:
        """Which of a sentence's tokens fit; those of a predicate before it always stay.

        offsets: where its tokens begin and end, in characters.

        Raises DataError, which names the example.
        """
        limit = self.bound.max_length
        places = list(range(len(offsets)))
        length = len(offsets) + sum(map(len, self._around))
        if not offsets:
            raise DataError(f"{example.where}: none of its words leaves a token")
        if limit is None or length <= limit:
            return places
        if not self.truncate:
            raise DataError(
                f"{example.where}: its {len(sentence.words)} words are {length} tokens long and "
                f"only {limit} fit; shorten it, or set truncate"
            )
        predicate = sum(end <= sentence.words[0][0] for _, end in offsets)
        front, body = places[:predicate], places[predicate:]
        room = limit - (length - len(body))
        if room < 1:
            raise DataError(
                f"{example.where}: even without its sentence the input is {length - len(body)} "
                f"tokens long and only {limit} fit"
            )
        return front + (body[-room:] if self.truncate == "start" else body[:room])

    @override
    def collate(self, rows: Sequence[Row]) -> TagBatch:
        tag_rows = [row for row in rows if isinstance(row, TagRow)]
        inputs = padded_inputs([row.input_ids for row in tag_rows], self.bound.pad_id)
        labels = None
        if have_labels(rows):
            tags = [
                label
                for row in tag_rows
                for place, label in zip(row.words, row.labels or (), strict=True)
                if place != NO_TOKEN
            ]
            labels = torch.tensor(tags, dtype=torch.long)
        words = padded([row.words for row in tag_rows], NO_WORD)
        starts = torch.arange(len(words)).unsqueeze(1) * inputs["input_ids"].shape[1]
        return TagBatch(inputs, words, (starts + words)[words >= 0], labels)

    @override
    def outputs(self, model: PreTrainedModel, batch: TagBatch) -> Scores:
        """The scores of the tags of all N words with a token, `[N, C]`."""
        require_head(model, self.head())
        states = token_states(model, self.chart(model), **batch.inputs)
        scores = classify(model, states, batch.inputs["attention_mask"]).float()  # [B, T, C]
        return Scores(scores.flatten(0, 1).index_select(0, batch.positions))

    @override
    def loss(self, outputs: Scores, batch: TagBatch) -> tuple[Tensor, int]:
        """Cross entropy of the words' tags, and how many words have a token."""
        labels = require_labels(batch.labels)
        return F.cross_entropy(outputs.scores, labels, reduction="sum"), len(labels)

    @torch.no_grad()
    @override
    def predict(self, model: PreTrainedModel, batch: TagBatch) -> list[list[str]]:
        """A tag for every word, "O" for those without a token."""
        tags = batch.words.clone()
        tags[tags >= 0] = self.outputs(model, batch).scores.argmax(1).to(tags.device)
        return self._names(tags)

    @override
    def inputs_of_text(self, text: str) -> dict[str, Value]:
        return {"text": text, "tokens": list(split_words(text))}

    @override
    def complete_inputs(self, fields: Mapping[str, Value]) -> Mapping[str, Value]:
        """A row with a `text` and no `tokens` gets the words of its text."""
        text = fields.get("text")
        if "tokens" in fields or not isinstance(text, str):
            return fields
        return {**fields, **self.inputs_of_text(text)}

    @property
    @override
    def record_columns(self) -> tuple[Column, ...]:
        return (
            Column(PREDICTION, "texts", "the tag of each word"),
            Column("entities", "entities", "the spans that the tags mark: text, label, start and "
                   "end in characters, and score, the mean probability of its words' tags"),
        )  # fmt: skip

    @torch.no_grad()
    @override
    def records(
        self, model: PreTrainedModel, batch: TagBatch, temperature: float = 1.0
    ) -> list[Record]:
        """Tags and their probabilities, of which `merge_records` makes entities."""
        scores = self.outputs(model, batch).scores
        best, number = probabilities(scores, temperature).max(1)
        tags, shares = batch.words.clone(), torch.ones(batch.words.shape)
        tags[tags >= 0] = number.to(tags.device)
        shares[(batch.words >= 0).cpu()] = best.cpu()
        names = self._names(tags)
        return [
            {PREDICTION: row, "shares": row_shares[: len(row)]}
            for row, row_shares in zip(names, shares.tolist(), strict=True)
        ]

    @override
    def merge_records(
        self, rows: Sequence[Row], records: Sequence[Record], examples: Sequence[Example]
    ) -> list[Record]:
        plain = self.scheme == "plain"
        result: list[Record] = []
        for record, example in zip(records, examples, strict=True):
            tags, words, text = record[PREDICTION], texts_in(example, "tokens"), example.fields.get("text")  # fmt: skip  # noqa: E501
            written = text if isinstance(text, str) else None
            spans = entities(words, tags, record["shares"], text=written, plain=plain)
            result.append({PREDICTION: tags, "entities": spans})
        return result

    @override
    def class_scores(self, outputs: Scores, batch: TagBatch) -> tuple[Tensor, Tensor] | None:
        return None if batch.labels is None else (outputs.scores, batch.labels)

    @override
    def mistake(self, record: Record, example: Example) -> Mistake | None:
        """The cost is the number of words with a wrong tag."""
        gold = self._tags(example)
        wrong = sum(a != b for a, b in zip(record[PREDICTION], gold, strict=True))
        return Mistake(wrong, gold) if wrong else None

    @torch.no_grad()
    @override
    def vote(
        self, model: PreTrainedModel, batch: TagBatch, members: int
    ) -> tuple[list[list[str]], list[list[str]]]:
        """A vote on every word; of equally many votes the highest mean score wins."""
        words = batch.words
        present = words >= 0
        scores = self.outputs(model, batch).scores.to(words.device)
        table = scores.new_zeros(*words.shape, scores.shape[1])
        table[present] = scores
        votes, winners = majority(table, members)  # [B, W], [B / members, W]
        votes = torch.where(present, votes, words)
        return self._names(votes), self._names(
            torch.where(present[::members], winners, words[::members])
        )

    def _names(self, tags: Tensor) -> list[list[str]]:
        """The names of tags `[B, W]`, `NO_TOKEN` or `NO_WORD` among them."""
        labels = self._known_labels()
        return [
            [OUTSIDE if tag == NO_TOKEN else labels[tag] for tag in row if tag != NO_WORD]
            for row in tags.tolist()
        ]

    @override
    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        gold = [gold_tags(example, self.label_names) for example in examples]
        return metrics.tagging(predictions, gold, plain=self.scheme == "plain")


def _number(example: Example, tag: str, numbers: dict[str, int]) -> int:
    """The number of a gold tag. Raises DataError for an unknown one."""
    if tag not in numbers:
        names = other_names(tag, numbers)
        cure = nearest(tag, numbers)
        if names is not None:
            cure = f"; did you mean {names[tag]!r}? then give label_names={names!r:.200}"
        raise DataError(f"{example.where}: there is no tag {tag!r}{cure}")
    return numbers[tag]
