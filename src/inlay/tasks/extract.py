"""extract: a question and a context -> the part of the context that answers it, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.data.dataset import Example
from inlay.errors import DataError, TaskError
from inlay.methods.head import Head
from inlay.runtime.trained_heads import classify, token_states
from inlay.tasks import metrics
from inlay.tasks.answers import Offsets, checked_answers, gold_answers, text_of, tokens_of
from inlay.tasks.base import Bound, Prediction, Task
from inlay.tasks.batch import Batch
from inlay.tasks.outputs import SpanScores
from inlay.tasks.records import PREDICTION, Column, Mistake, Record, probabilities
from inlay.tasks.requirements import require_head
from inlay.tasks.rows import Row, have_labels, padded, padded_inputs, require_labels
from inlay.tasks.text_pair import one_text, two_texts

ENDS = ("start", "end")
"""The labels of the head: how well an answer starts at a position, and ends there."""

Span = tuple[int, int, float]
"""First and last position of a row's best span, and by how much it beats "no answer"."""


@dataclass(frozen=True, slots=True)
class Window(Row):
    """A question with a part of its context.

    begin: the position of the first token of the context.
    offsets: where the tokens of the part begin and end in the whole context, in characters.
    """

    begin: int = 0
    offsets: Offsets = ()


@dataclass(frozen=True, eq=False)
class ExtractBatch(Batch):
    """Windows of questions with their contexts.

    bounds: the first and the last position of the context, and the one that stands for "no
        answer", `[B, 3]`.
    labels: the first and the last position of the answer, `[B, 2]`; None without answers.
    """

    bounds: Tensor
    labels: Tensor | None = None


@dataclass(kw_only=True)
class Extract(Task[ExtractBatch, SpanScores]):
    """`question` and `context` -> a part of the context, or "" where it holds no answer.

    A trained head scores every token of the context as the first and as the last of the answer.
    The last token of the row stands for "no answer": the row's end token, which even a decoder
    reads when it has read everything. The question comes before the context. An example is a row,
    or with `stride` several windows; that window decides whose best span beats its own "no answer"
    by most.

    `answers` is a list of `{"text": …, "start": …}`, the position of its first character in the
    context; an empty list where there is no answer. The first one is learned. A window without
    the whole of it learns that there is none.

    stride: how many tokens of the context neighbouring windows share; None refuses a context that
        is too long.
    longest: the most tokens that are predicted as an answer.
    metric: the primary metric.
    """

    name: ClassVar[str] = "extract"

    stride: int | None = None
    longest: int = 30
    metric: metrics.ExtractionMetric = "f1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.longest < 1:
            raise TaskError(f"extract: longest={self.longest} leaves no answers")
        if self.stride is not None and self.stride < 0:
            raise TaskError(f"extract: stride={self.stride} must not be below 0")
        if self.stride is not None and self.truncate:
            raise TaskError("extract: truncate and stride exclude each other; give one of them")

    @override
    def head(self) -> Head:
        return Head(labels=ENDS, pool="each")

    @property
    @override
    def required_fields(self) -> tuple[str, ...]:
        return ("context", "question", "answers")

    @property
    @override
    def gold_fields(self) -> tuple[str, ...]:
        return ("answers",)

    @override
    def check(self, example: Example) -> None:
        for name in ("question", "context"):
            if name in example.fields:
                text_of(example, name)
        if "context" in example.fields:
            checked_answers(example)

    # ------------------------------------------------------------------------------- its model

    @override
    def on_bind(self, bound: Bound, model: PreTrainedModel) -> None:
        tokenizer, decoder = bound.tokenizer, bound.chart.kind == "decoder"
        if not tokenizer.is_fast:
            raise TaskError(f"extract needs a fast tokenizer, not {type(tokenizer).__name__}")
        self._separator = "\n" if decoder else ""
        self._types = not decoder and bound.chart.stacks[0].takes("token_type_ids")
        self._pair = one_text(bound) if decoder else two_texts(bound)
        if not self._pair.after:
            if tokenizer.eos_token_id is None:
                raise TaskError("extract needs an end token; set tokenizer.eos_token")
            self._pair.after.append((tokenizer.eos_token_id, self._pair.types[1]))

    # ---------------------------------------------------------------------------- its arithmetic

    @override
    def encode_some(self, examples: Sequence[Example], first_index: int) -> list[Row]:
        questions = [text_of(example, "question") for example in examples]
        contexts = [text_of(example, "context") for example in examples]
        answers = [checked_answers(example) for example in examples]
        question_ids = self._tokenize([q + self._separator for q in questions])["input_ids"]
        encoding = self._tokenize(contexts)
        rows: list[Row] = []
        for number, example in enumerate(examples):
            question, ids = question_ids[number], encoding["input_ids"][number]
            offsets, gold = encoding["offset_mapping"][number], answers[number]
            answer = tokens_of(gold[0], offsets) if gold else None
            for begin, end in self._windows(example, len(question), len(ids)):
                tokens, start = self._pair.join(question, ids[begin:end])
                labels = None
                if gold is not None:
                    no_answer = len(tokens) - 1
                    labels = [no_answer, no_answer]
                    if answer is not None and begin <= answer[0] and answer[1] < end:
                        labels = [start + place - begin for place in answer]
                row = Window(
                    [token for token, _ in tokens],
                    labels,
                    first_index + number,
                    example.where,
                    len(tokens),
                    [kind for _, kind in tokens] if self._types else None,
                    begin=start,
                    offsets=offsets[begin:end],
                )
                rows.append(row)
        return rows

    def _tokenize(self, texts: list[str]) -> Any:
        return self.bound.tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )

    def _windows(self, example: Example, question: int, context: int) -> list[tuple[int, int]]:
        """From which to which token of the context each window reaches.

        question, context: how many tokens each has.

        Raises DataError, which names the example, where it does not fit.
        """
        limit = self.bound.max_length
        if not context:
            raise DataError(f"{example.where}: its context leaves no tokens")
        if limit is None:
            return [(0, context)]
        room = limit - question - self._pair.length
        if room < 1:
            raise DataError(
                f"{example.where}: its question of {question} tokens leaves no room for a context, "
                f"for only {limit} tokens fit; shorten it"
            )
        if context <= room:
            return [(0, context)]
        if self.truncate:
            return [(context - room, context) if self.truncate == "start" else (0, room)]
        if self.stride is None:
            raise DataError(
                f"{example.where}: its context is {context} tokens long and only {room} fit next "
                "to its question; set a stride, such as 128, or truncate"
            )
        step = room - self.stride
        if step < 1:
            raise DataError(
                f"{example.where}: windows of {room} tokens, which fit next to its question, "
                f"cannot share {self.stride}; set a smaller stride"
            )
        starts = range(0, context - self.stride, step)
        return [(start, min(start + room, context)) for start in starts]

    @override
    def collate(self, rows: Sequence[Row]) -> ExtractBatch:
        windows = [row for row in rows if isinstance(row, Window)]
        inputs = padded_inputs([row.input_ids for row in windows], self.bound.pad_id)
        if self._types:
            inputs["token_type_ids"] = padded([row.token_type_ids or () for row in windows], 0)
        bounds = [[row.begin, row.begin + len(row.offsets) - 1, len(row) - 1] for row in windows]
        labels = torch.tensor([row.labels for row in windows]) if have_labels(rows) else None
        return ExtractBatch(inputs, torch.tensor(bounds), labels)

    @override
    def outputs(self, model: PreTrainedModel, batch: ExtractBatch) -> SpanScores:
        """The scores of every position as start and end, -inf outside of the context.

        The position of "no answer" has scores too.
        """
        require_head(model, self.head())
        states = token_states(model, self.chart(model), **batch.inputs)
        scores = classify(model, states, batch.inputs["attention_mask"]).float()  # [B, T, 2]
        first, last, no_answer = batch.bounds.to(scores.device).split(1, dim=1)
        position = torch.arange(scores.shape[1], device=scores.device)
        possible = ((position >= first) & (position <= last)) | (position == no_answer)
        scores = scores.masked_fill(~possible[..., None], -torch.inf)
        return SpanScores(scores.transpose(1, 2))

    @override
    def loss(self, outputs: SpanScores, batch: ExtractBatch) -> tuple[Tensor, int]:
        """Mean cross entropy of start and end, and how many rows there are."""
        labels = require_labels(batch.labels)
        scores = outputs.scores.transpose(1, 2)  # [B, T, 2]
        return F.cross_entropy(scores, labels, reduction="sum") / 2, len(labels)

    @torch.no_grad()
    @override
    def predict(self, model: PreTrainedModel, batch: ExtractBatch) -> list[Span]:
        """The best span of each row; `merge_windows` makes answers of them."""
        return self.best_spans(self.outputs(model, batch).scores, batch.bounds)

    @torch.no_grad()
    @override
    def vote(
        self, model: PreTrainedModel, batch: ExtractBatch, members: int
    ) -> tuple[list[Span], list[Span]]:
        """Spans are too many for a vote, so the mean of the scores decides."""
        scores, bounds = self.outputs(model, batch).scores, batch.bounds
        means = scores.unflatten(0, (-1, members)).mean(1)
        return self.best_spans(scores, bounds), self.best_spans(means, bounds[::members])

    def best_spans(self, scores: Tensor, bounds: Tensor) -> list[Span]:
        """The best span of each row, by scores `[B, 2, T]`."""
        scores, no_answer = scores.clone(), bounds.to(scores.device)[:, 2]
        row = torch.arange(len(scores), device=scores.device)
        without = scores[row, :, no_answer].sum(1)
        scores[row, :, no_answer] = -torch.inf
        start, end = scores.unbind(1)
        # [B, T, L]: a span from each position that is 1, 2, … `longest` tokens long.
        ends = F.pad(end, (0, self.longest - 1), value=-torch.inf).unfold(1, self.longest, 1)
        best, place = (start[..., None] + ends).flatten(1).max(1)
        firsts = place // self.longest
        lasts = firsts + place % self.longest
        margins = best - without
        return list(zip(firsts.tolist(), lasts.tolist(), margins.tolist(), strict=True))

    @override
    def merge_windows(
        self, rows: Sequence[Row], predictions: Sequence[Any], examples: Sequence[Example]
    ) -> list[Prediction]:
        """Of each example's windows the span that beats "no answer" by most, as text."""
        answers, best = [""] * len(examples), [0.0] * len(examples)
        for row, (first, last, margin) in zip(rows, predictions, strict=True):
            assert isinstance(row, Window)
            if margin > best[row.index]:
                best[row.index] = margin
                begin, end = self._place(row, first, last, examples[row.index])
                answers[row.index] = str(examples[row.index].fields["context"])[begin:end]
        return answers

    @property
    @override
    def record_columns(self) -> tuple[Column, ...]:
        return (
            Column(PREDICTION, "text", "the answer; empty where the context holds none"),
            Column("start", "integer", "its first character in the context; null without one"),
            Column("end", "integer", "the character after its last; null without one"),
            Column("score", "number", "the probability of its first token times that of its last"),
        )

    @torch.no_grad()
    @override
    def records(
        self, model: PreTrainedModel, batch: ExtractBatch, temperature: float = 1.0
    ) -> list[Record]:
        """The best span of each row and its score; `merge_records` makes answers of them."""
        scores = self.outputs(model, batch).scores
        best = self.best_spans(scores, batch.bounds)
        start, end = probabilities(scores, temperature).unbind(1)  # [B, T]
        row, last = torch.arange(len(start)), batch.bounds[:, 2].tolist()
        without = (start[row, last] * end[row, last]).tolist()
        firsts, lasts = [span[0] for span in best], [span[1] for span in best]
        shares = (start[row, firsts] * end[row, lasts]).tolist()
        parts = zip(best, shares, without, strict=True)
        return [{PREDICTION: span, "share": with_, "none": none} for span, with_, none in parts]

    @override
    def merge_records(
        self, rows: Sequence[Row], records: Sequence[Record], examples: Sequence[Example]
    ) -> list[Record]:
        """The answer of `merge_windows`. "No answer" is as sure as its least sure window."""
        empty = {PREDICTION: "", "start": None, "end": None, "score": 1.0}
        merged: list[Record] = [dict(empty) for _ in examples]
        best = [0.0] * len(examples)
        for row, record in zip(rows, records, strict=True):
            assert isinstance(row, Window)
            first, last, margin = record[PREDICTION]
            answer = merged[row.index]
            if margin > best[row.index]:
                best[row.index] = margin
                begin, end = self._place(row, first, last, examples[row.index])
                text = str(examples[row.index].fields["context"])[begin:end]
                answer |= {PREDICTION: text, "start": begin, "end": end, "score": record["share"]}
            elif answer["start"] is None:
                answer["score"] = min(answer["score"], record["none"])
        return merged

    @staticmethod
    def _place(row: Window, first: int, last: int, example: Example) -> tuple[int, int]:
        """Where a span of tokens is in its context, in characters, without space around it."""
        begin, end = row.offsets[first - row.begin][0], row.offsets[last - row.begin][1]
        text = str(example.fields["context"])[begin:end]
        begin += len(text) - len(text.lstrip())
        return begin, begin + len(text.strip())

    @override
    def mistake(self, record: Record, example: Example) -> Mistake | None:
        """The cost is one minus F1, and the score of the answer where they are equal."""
        gold = [text for text, _ in gold_answers(example)]
        scores = metrics.extraction([record[PREDICTION]], [gold])
        if scores["exact_match"]:
            return None
        return Mistake(1 - scores["f1"] + 1e-3 * record["score"], gold[0] if gold else "")

    @override
    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        gold = [[text for text, _ in gold_answers(example)] for example in examples]
        return metrics.extraction(predictions, gold)
