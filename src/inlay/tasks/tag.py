"""tag: words -> a tag for each, such as names of entities, parts of speech or semantic roles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from inlay.data.dataset import Example
from inlay.data.raw import kind_of
from inlay.errors import DataError, TaskError, nearest
from inlay.heads import classify as classify_by_head
from inlay.heads import token_states
from inlay.methods.head import Head
from inlay.tasks import metrics
from inlay.tasks.base import (
    Batch,
    Bound,
    Prediction,
    Row,
    Task,
    labelled,
    list_of,
    majority,
    mask_of,
    need_head,
    need_labels,
    padded,
)
from inlay.tasks.metrics import OUTSIDE
from inlay.tasks.rows import around

LOST = -1
"""The place of a word without a token."""

NONE = -2
"""What fills up places behind the words of a row."""


@dataclass(frozen=True, slots=True)
class Sentence(Row):
    """A row of words. places: where the first token of each stands, or `LOST`."""

    places: tuple[int, ...] = ()


@dataclass(kw_only=True)
class Tag(Task):
    """`tokens`, a list of words -> `tags`, one for each, by a trained head on every position.

    The words are written with spaces between them. A word is tagged, and learned from, at its
    first token. A word without one, because the tokenizer drops its characters or `truncate` has
    cut it off, is not learned from, and said to be "O".

    A row may have a `predicate`, the number of a word from 0 on: the tags are then roles of that
    word, which is written in front of the sentence, where a decoder needs it, and framed in it, so
    that it is told from its likes: "sat : the cat [ sat ] down".

    labels: the tags; None takes them, sorted, from the training data (`prepare`).
    scheme: "spans" for tags that are "O", or a type behind a letter, B-, I-, E- or S- (or those of
        IOB1, IOE, BILOU, BMES), and mean spans of words; "plain" for tags that mean themselves.
    metric: the primary metric; F1 is over spans, or over words that are not "O".
    """

    name: ClassVar[str] = "tag"

    labels: tuple[str, ...] | None = None
    scheme: Literal["spans", "plain"] = "spans"
    metric: metrics.TaggingMetric = "f1"

    def __post_init__(self) -> None:
        if isinstance(self.labels, list | tuple):
            self.labels = tuple(self.labels)
        super().__post_init__()
        if self.labels is not None:
            self._check_labels(self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        """The tags in their order. Raises TaskError while they are not known."""
        if self.labels is None:
            raise TaskError(
                "tag: the tags are not known yet; give labels (--task.labels), or, in Python, call "
                "prepare(training examples)"
            )
        return self.labels

    def _check_labels(self, names: Sequence[str]) -> None:
        if not names:
            raise TaskError("tag: there are no labels")
        for name in names:
            if names.count(name) > 1:
                raise TaskError(f"tag: label {name!r} is there twice")
            if self.scheme == "spans":
                try:
                    metrics.parted(name)
                except ValueError:
                    raise TaskError(
                        f"tag: label {name!r} is neither 'O' nor a type behind B-, I-, E- or S-; "
                        "scheme='plain' takes tags as they are"
                    ) from None

    def head(self) -> Head:
        """See `Task`."""
        return Head(labels=self.names, pool="each")

    def adopt(self, labels: tuple[str, ...]) -> None:
        """See `Task`."""
        if self.labels is None:
            self.labels = labels

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Task`."""
        return ("tokens", "tags")

    @property
    def gold(self) -> tuple[str, ...]:
        """See `Task`."""
        return ("tags",)

    def prepare(self, examples: Iterable[Example]) -> None:
        """Take the tags from the training examples, unless they were given."""
        if self.labels is None:
            found = sorted({tag for example in examples for tag in _tags(example)})
            self._check_labels(found)
            self.labels = tuple(found)

    # ----------------------------------------------------------------- its model

    def check(self, bound: Bound, model: PreTrainedModel) -> None:
        """See `Task`."""
        if not bound.tokenizer.is_fast:
            raise TaskError(f"tag needs a fast tokenizer, not {type(bound.tokenizer).__name__}")
        before, behind = around(bound.tokenizer)
        self._frame = (before, [] if bound.chart.kind == "decoder" else behind)

    # ---------------------------------------------------------------- arithmetic

    def _encode(self, examples: Sequence[Example], first: int) -> list[Row]:
        numbers = {name: number for number, name in enumerate(self.names)}
        written = [_written(example) for example in examples]
        read = self.bound.tokenizer(
            [one.text for one in written],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        rows: list[Row] = []
        both = zip(read["input_ids"], read["offset_mapping"], strict=True)
        for number, (example, one, (ids, offsets)) in enumerate(
            zip(examples, written, both, strict=True)
        ):
            kept = self._kept(example, one, offsets)
            before, behind = self._frame
            tokens = [*before, *(ids[place] for place in kept), *behind]
            places = _places([offsets[place] for place in kept], one.words, len(before))
            labels = None
            if "tags" in example.fields:
                tags = _tags(example)
                for tag in tags:
                    if tag not in numbers:
                        known = nearest(tag, numbers)
                        raise DataError(f"{example.where}: there is no tag {tag!r}{known}")
                labels = [numbers[tag] for tag in tags]
            rows.append(
                Sentence(tokens, labels, first + number, example.where, len(tokens), places=places)
            )
        return rows

    def _kept(
        self, example: Example, one: _Written, offsets: Sequence[tuple[int, int]]
    ) -> list[int]:
        """The tokens that fit. Those in front of the sentence always stay."""
        limit = self.bound.limit
        everything = list(range(len(offsets)))
        length = len(offsets) + sum(map(len, self._frame))
        if not offsets:
            raise DataError(f"{example.where}: none of its words leaves a token")
        if limit is None or length <= limit:
            return everything
        if not self.truncate:
            raise DataError(
                f"{example.where}: its {len(one.words)} words are {length} tokens long where "
                f"{limit} fit; shorten it, or ask for truncate"
            )
        ahead = sum(end <= one.words[0][0] for _, end in offsets)
        front, body = everything[:ahead], everything[ahead:]
        room = limit - (length - len(body))
        if room < 1:
            raise DataError(
                f"{example.where}: even without its sentence the input is {length - len(body)} "
                f"tokens long where {limit} fit"
            )
        return front + (body[-room:] if self.truncate == "start" else body[:room])

    def collate(self, rows: Sequence[Row]) -> Batch:
        """See `Task`."""
        sentences = [row for row in rows if isinstance(row, Sentence)]
        texts = [row.input_ids for row in sentences]
        batch = {"input_ids": padded(texts, self.bound.pad), "attention_mask": mask_of(texts)}
        batch["words"] = padded([row.places for row in sentences], NONE)
        if labelled(rows):
            # Where in the flat [B·T] a tag is learned, and which.
            width = batch["input_ids"].shape[1]
            pairs = [
                (number * width + place, label)
                for number, row in enumerate(sentences)
                for place, label in zip(row.places, row.labels or (), strict=True)
                if place != LOST
            ]
            flat = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
            batch["positions"], batch["targets"] = flat.unbind(1)
        return batch

    def logits(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The scores of the tags at every position, `[B, T, C]`, fp32."""
        need_head(model, self.head())
        ids, mask = batch["input_ids"], batch["attention_mask"]
        states = token_states(model, self.chart(model), input_ids=ids, attention_mask=mask)
        return classify_by_head(model, states, mask).float()

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """See `Task`: cross entropy of the words' tags, and how many words have a token."""
        targets = need_labels(batch, "targets")
        logits = self.logits(model, batch).flatten(0, 1).index_select(0, batch["positions"])
        return F.cross_entropy(logits, targets, reduction="sum"), len(targets)

    @torch.no_grad()
    def predict(self, model: PreTrainedModel, batch: Batch) -> list[list[str]]:
        """See `Task`: a tag for every word, "O" for those without a token."""
        return self._named(self.logits(model, batch).argmax(2), batch["words"])

    @torch.no_grad()
    def ballot(
        self, model: PreTrainedModel, batch: Batch, members: int
    ) -> tuple[list[list[str]], list[list[str]]]:
        """See `Task`: a vote on every word, and of equally many the highest mean logit."""
        said, won = majority(self.logits(model, batch), members)
        places = batch["words"]
        return self._named(said, places), self._named(won, places[::members])

    def _named(self, best: Tensor, places: Tensor) -> list[list[str]]:
        """The names of the tags `[B, T]` at the words' places `[B, W]`."""
        best = best.gather(1, places.clamp(min=0))
        said = best.masked_fill(places == LOST, LOST).masked_fill(places == NONE, NONE)
        return [
            [OUTSIDE if tag == LOST else self.names[tag] for tag in row if tag != NONE]
            for row in said.tolist()
        ]

    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        """See `Task`."""
        gold = [_texts(example, "tags") for example in examples]
        return metrics.tagging(predictions, gold, plain=self.scheme == "plain")


# ------------------------------------------------------------------------------- a sentence


@dataclass(frozen=True)
class _Written:
    """A sentence as text. words: where each begins and ends in it, in characters."""

    text: str
    words: list[tuple[int, int]]


def _written(example: Example) -> _Written:
    """The sentence with its words apart by spaces, its predicate in front and framed."""
    tokens = _texts(example, "tokens")
    if not tokens:
        raise DataError(f"{example.where}: its list of tokens is empty")
    if not "".join(tokens).strip():
        raise DataError(f"{example.where}: all of its tokens are empty texts")
    predicate = _predicate(example, len(tokens))
    text = "" if predicate is None else f"{tokens[predicate]} : "
    words = []
    for number, word in enumerate(tokens):
        text += " " if number else ""
        text += "[ " if number == predicate else ""
        words.append((len(text), len(text) + len(word)))
        text += word
        text += " ]" if number == predicate else ""
    return _Written(text, words)


def _predicate(example: Example, count: int) -> int | None:
    if "predicate" not in example.fields:
        return None
    given = example.fields["predicate"]
    if isinstance(given, bool) or not isinstance(given, int):
        raise DataError(
            f"{example.where}: predicate is the number of a word, from 0 on, not {given!r:.80}"
        )
    if not 0 <= given < count:
        raise DataError(
            f"{example.where}: predicate={given} is none of its {count} tokens, which are "
            f"numbered from 0 to {count - 1}"
        )
    return given


def _texts(example: Example, name: str) -> list[str]:
    items = list_of(example, name)
    for number, item in enumerate(items, 1):
        if not isinstance(item, str):
            raise DataError(f"{example.where}: {name} is a list of texts, and item {number} is {kind_of(item)}")  # fmt: skip  # noqa: E501
    return items


def _tags(example: Example) -> list[str]:
    """The gold tags, one for every word."""
    tags = _texts(example, "tags")
    count = len(list_of(example, "tokens"))
    if len(tags) != count:
        raise DataError(
            f"{example.where}: {count} tokens and {len(tags)} tags; every token has one tag"
        )
    return tags


def _places(
    offsets: Sequence[tuple[int, int]], words: Sequence[tuple[int, int]], shift: int
) -> tuple[int, ...]:
    """Where the first token of each word stands, `shift` tokens further on, or `LOST`.

    A token belongs to a word if it covers any character of it; a space in front, which some
    tokenizers count in, does not matter. Both are in order, so one walk finds them all.
    """
    found: list[Any] = []
    place = 0
    for begin, end in words:
        while place < len(offsets) and offsets[place][1] <= begin:
            place += 1
        covers = begin < end and place < len(offsets) and offsets[place][0] < end
        found.append(place + shift if covers else LOST)
    return tuple(found)
