"""extract: a question and a context -> the part of the context that answers it, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from inlay.data.dataset import Example
from inlay.errors import DataError, TaskError
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
    field_of,
    labelled,
    list_of,
    mask_of,
    need_head,
    need_labels,
    padded,
)
from inlay.tasks.text_pair import framed_pair, framed_text

ENDS = ("start", "end")
"""What the head says of every position: how well an answer begins there, or ends."""

Offsets = Sequence[tuple[int, int]]
"""Where in a text its tokens begin and end, in characters."""

Found = tuple[int, int, float]
"""The first and last position of a row's best span, and by how much it beats no answer."""


@dataclass(frozen=True, slots=True)
class Window(Row):
    """A question with a part of its context.

    begin: the position of the first token of the context. offsets: where in the whole context the
    part's tokens begin and end, in characters.
    """

    begin: int = 0
    offsets: Offsets = ()


@dataclass(kw_only=True)
class Extract(Task):
    """`question` and `context` -> a part of the context, or "" where it holds no answer.

    A trained head scores every token of the context as the first and as the last of the answer,
    and the last token of the row as both where there is none: the row's end token, which even a
    decoder reads when it has seen everything. The question stands in front of the context. An
    example is a row, or with `stride` several; the row speaks whose best span beats its own "no
    answer" by most.

    `answers` is a list of `{"text": …, "start": …}`, the place of its first character in the
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
            raise TaskError(f"extract: stride={self.stride} is less than no tokens")
        if self.stride is not None and self.truncate:
            raise TaskError("extract: truncate and stride exclude each other; give one of them")

    def head(self) -> Head:
        """See `Task`."""
        return Head(labels=ENDS, pool="each")

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Task`."""
        return ("context", "question", "answers")

    @property
    def gold(self) -> tuple[str, ...]:
        """See `Task`."""
        return ("answers",)

    # ----------------------------------------------------------------- its model

    def check(self, bound: Bound, model: PreTrainedModel) -> None:
        """See `Task`."""
        tokenizer, decoder = bound.tokenizer, bound.chart.kind == "decoder"
        if not tokenizer.is_fast:
            raise TaskError(f"extract needs a fast tokenizer, not {type(tokenizer).__name__}")
        self._joint = "\n" if decoder else ""
        self._types = not decoder and bound.chart.stacks[0].takes("token_type_ids")
        self._frame = framed_text(bound) if decoder else framed_pair(bound)
        if not self._frame.behind:
            if tokenizer.eos_token_id is None:
                raise TaskError("extract needs an end token; set tokenizer.eos_token")
            self._frame.behind.append((tokenizer.eos_token_id, self._frame.kinds[1]))

    # ---------------------------------------------------------------- arithmetic

    def _encode(self, examples: Sequence[Example], first: int) -> list[Row]:
        questions = [_text(example, "question") for example in examples]
        contexts = [_text(example, "context") for example in examples]
        answers = [_answers(example) for example in examples]
        asked = self._read([text + self._joint for text in questions])["input_ids"]
        read = self._read(contexts)
        rows: list[Row] = []
        for number, example in enumerate(examples):
            ids, offsets = read["input_ids"][number], read["offset_mapping"][number]
            golden = answers[number]
            gold = _tokens(golden[0], offsets) if golden else None
            for begin, end in self._windows(example, len(asked[number]), len(ids)):
                text, at = self._frame.fill(asked[number], ids[begin:end])
                labels = None
                if golden is not None:
                    last = len(text) - 1
                    inside = gold is not None and begin <= gold[0] and gold[1] < end
                    labels = (
                        [at + place - begin for place in gold]
                        if gold is not None and inside
                        else [last, last]
                    )
                rows.append(
                    Window(
                        [token for token, _ in text],
                        labels,
                        first + number,
                        example.where,
                        len(text),
                        [kind for _, kind in text] if self._types else None,
                        begin=at,
                        offsets=offsets[begin:end],
                    )
                )
        return rows

    def _read(self, texts: list[str]) -> Any:
        return self.bound.tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )

    def _windows(self, example: Example, question: int, context: int) -> list[tuple[int, int]]:
        """From which to which token the context goes in each row."""
        limit = self.bound.limit
        if not context:
            raise DataError(f"{example.where}: its context leaves no tokens")
        if limit is None:
            return [(0, context)]
        room = limit - question - self._frame.length
        if room < 1:
            raise DataError(
                f"{example.where}: its question of {question} tokens leaves no room for a context "
                f"where {limit} tokens fit; shorten it"
            )
        if context <= room:
            return [(0, context)]
        if self.truncate:
            return [(context - room, context) if self.truncate == "start" else (0, room)]
        if self.stride is None:
            raise DataError(
                f"{example.where}: its context is {context} tokens long where {room} fit beside "
                "its question; give a stride, such as 128, or ask for truncate"
            )
        step = room - self.stride
        if step < 1:
            raise DataError(
                f"{example.where}: windows of {room} tokens, which fit beside its question, cannot "
                f"share {self.stride}; give a smaller stride"
            )
        starts = range(0, context - self.stride, step)
        return [(start, min(start + room, context)) for start in starts]

    def collate(self, rows: Sequence[Row]) -> Batch:
        """See `Task`."""
        windows = [row for row in rows if isinstance(row, Window)]
        texts = [row.input_ids for row in windows]
        batch = {"input_ids": padded(texts, self.bound.pad), "attention_mask": mask_of(texts)}
        if self._types:
            batch["token_type_ids"] = padded([row.token_type_ids or () for row in windows], 0)
        # The first and last position of the context, and the one that says there is no answer.
        batch["bounds"] = torch.tensor(
            [[row.begin, row.begin + len(row.offsets) - 1, len(row) - 1] for row in windows]
        )
        if labelled(rows):
            batch["labels"] = torch.tensor([row.labels for row in windows])
        return batch

    def logits(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """How well an answer starts and ends at each position, `[B, T, 2]`, fp32.

        -inf where it cannot: outside of the context, but for the position of no answer.
        """
        need_head(model, self.head())
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = {name: batch[name] for name in names if name in batch}
        states = token_states(model, self.chart(model), **inputs)
        logits = classify_by_head(model, states, batch["attention_mask"]).float()
        first, last, none = batch["bounds"].to(logits.device).split(1, dim=1)
        place = torch.arange(logits.shape[1], device=logits.device)
        open_ = ((place >= first) & (place <= last)) | (place == none)
        return logits.masked_fill(~open_[..., None], -torch.inf)

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """See `Task`: mean cross entropy of start and end, and how many rows there are."""
        labels = need_labels(batch, "labels")
        return F.cross_entropy(self.logits(model, batch), labels, reduction="sum") / 2, len(labels)

    @torch.no_grad()
    def predict(self, model: PreTrainedModel, batch: Batch) -> list[Found]:
        """See `Task`: the best span of each row, as `Found`; `whole` makes answers of them."""
        return self._best(self.logits(model, batch), batch["bounds"])

    @torch.no_grad()
    def ballot(
        self, model: PreTrainedModel, batch: Batch, members: int
    ) -> tuple[list[Found], list[Found]]:
        """See `Task`: spans are too many for a vote, so the mean of the logits decides."""
        logits, bounds = self.logits(model, batch), batch["bounds"]
        means = logits.unflatten(0, (-1, members)).mean(1)
        return self._best(logits.clone(), bounds), self._best(means, bounds[::members])

    def _best(self, logits: Tensor, bounds: Tensor) -> list[Found]:
        """The best span of each row by logits `[B, T, 2]`, which are changed."""
        none = bounds.to(logits.device)[:, 2]
        rows = torch.arange(len(logits), device=logits.device)
        without = logits[rows, none].sum(1)
        logits[rows, none] = -torch.inf
        start, end = logits.unbind(2)
        # [B, T, L]: a span from each position that is 1, 2, … `longest` tokens long.
        ends = F.pad(end, (0, self.longest - 1), value=-torch.inf).unfold(1, self.longest, 1)
        best, at = (start[..., None] + ends).flatten(1).max(1)
        firsts = at // self.longest
        lasts = firsts + at % self.longest
        margins = best - without
        return list(zip(firsts.tolist(), lasts.tolist(), margins.tolist(), strict=True))

    def whole(
        self, rows: Sequence[Row], said: Sequence[Any], examples: Sequence[Example]
    ) -> list[Prediction]:
        """See `Task`: of each example's rows, the span that beats no answer by most, as text."""
        answers, best = [""] * len(examples), [0.0] * len(examples)
        for row, (first, last, margin) in zip(rows, said, strict=True):
            assert isinstance(row, Window)
            if margin > best[row.index]:
                best[row.index] = margin
                context = str(examples[row.index].fields["context"])
                begin, end = row.offsets[first - row.begin][0], row.offsets[last - row.begin][1]
                answers[row.index] = context[begin:end].strip()
        return answers

    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        """See `Task`."""
        gold = [[text for text, _ in _given(example)] for example in examples]
        return metrics.extraction(predictions, gold)


# ----------------------------------------------------------------------------- its rows


def _text(example: Example, name: str) -> str:
    text = str(field_of(example, name))
    if not text.strip():
        raise DataError(f"{example.where}: its {name} is empty")
    return text


def _answers(example: Example) -> list[tuple[str, int]] | None:
    """The gold answers, or None where the example has none given."""
    return _golden(example) if "answers" in example.fields else None


def _golden(example: Example) -> list[tuple[str, int]]:
    """The gold answers, each with the place of its first character; checked against the context."""
    context = str(field_of(example, "context"))
    found = _given(example)
    for text, start in found:
        if start < 0 or not context.startswith(text, start):
            places = context.find(text)
            cure = "it stands nowhere in it" if places < 0 else f"it stands first at {places}"
            raise DataError(
                f"{example.where}: the answer {text!r:.80} is not in its context at character "
                f"{start}; {cure}"
            )
    return found


def _given(example: Example) -> list[tuple[str, int]]:
    """The gold answers as they were given."""
    found = []
    for given in list_of(example, "answers"):
        text, start = (given.get(name) for name in ("text", "start")) if isinstance(given, dict) else (None, None)  # fmt: skip  # noqa: E501
        if not isinstance(text, str) or isinstance(start, bool) or not isinstance(start, int):
            raise DataError(
                f'{example.where}: an answer is {{"text": "…", "start": 0}}, not {given!r:.80}'
            )
        if not text.strip():
            raise DataError(f"{example.where}: the text of an answer is empty")
        found.append((text, start))
    return found


def _tokens(answer: tuple[str, int], offsets: Offsets) -> tuple[int, int] | None:
    """The first and last token of an answer; None where the tokenizer drops all of it."""
    text, start = answer
    stop = start + len(text)
    inside = [at for at, (begin, end) in enumerate(offsets) if begin < stop and start < end]
    return (inside[0], inside[-1]) if inside else None
