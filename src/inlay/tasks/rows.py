"""Reader: fields of an example -> token ids that fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from inlay.data.dataset import Example
from inlay.data.template import VIRTUAL_TOKEN, Template
from inlay.errors import DataError
from inlay.tasks.base import Batch, Bound, field_of, mask_of, padded

Texts = Mapping[str, str]
"""The free texts of one example by field name: what may be shortened."""


@dataclass(frozen=True)
class Encoded:
    """Token ids, and for a pair the text that each belongs to."""

    ids: list[int]
    types: list[int] | None


@dataclass(frozen=True)
class Reader:
    """Writes the input of an example as text and reads it as tokens.

    template: how the fields make one text; None for `text`, and `text_pair` where there is one.
    joint: what stands between `text` and `text_pair` where the tokenizer knows no pairs; None for
        the tokenizer's own way.
    frame: puts the text into something fixed, such as a chat; None for the text as it stands.
    special: whether the tokenizer adds its special tokens.
    ends: how many of these stand behind the text and are taken off (a decoder goes on writing).
    types: whether the model wants to know which text of a pair a token belongs to.
    truncate: which side of a text too long is given up, if any.
    first: the id of the first virtual token.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template | None
    joint: str | None
    frame: Callable[[str], str] | None
    special: bool
    ends: int
    types: bool
    truncate: bool | Literal["end", "start"]
    first: int

    @staticmethod
    def of(bound: Bound, template: str | None, truncate: bool | Literal["end", "start"]) -> Reader:
        """The reader of whole texts, or pairs of them, as a trained head or a word judges them."""
        kind, tokenizer = bound.chart.kind, bound.tokenizer
        return Reader(
            tokenizer=tokenizer,
            template=None if template is None else Template(template),
            joint="\n" if kind == "decoder" else None,
            frame=None,
            special=True,
            ends=trailing(tokenizer) if kind == "decoder" else 0,
            types=bound.chart.stacks[0].takes("token_type_ids"),
            truncate=truncate,
            first=bound.first,
        )

    def read(self, examples: Sequence[Example], rooms: Sequence[int | None]) -> list[Encoded]:
        """The examples as tokens, each no longer than its room.

        Raises DataError, which names the example: a missing field, no tokens, too many tokens.
        """
        texts = [self._texts(example) for example in examples]
        read = self._tokenize(texts)
        for place, (example, room) in enumerate(zip(examples, rooms, strict=True)):
            if room is not None and len(read[place].ids) > room:
                read[place] = self._fit(example, texts[place], read[place], room)
            if not read[place].ids:
                raise DataError(f"{example.where}: its text is empty, which leaves no tokens")
        return read

    def _texts(self, example: Example) -> Texts:
        if self.template is not None:
            names = self.template.names
        else:
            names = ("text", "text_pair") if "text_pair" in example.fields else ("text",)
        texts = {name: str(field_of(example, name)) for name in names}
        bare = "".join(texts.values()) if self.template is None else self.template.fill(texts)
        if not bare.strip():
            raise DataError(f"{example.where}: its text is empty, and no template adds to it")
        return texts

    def _written(self, texts: Texts) -> tuple[str, ...]:
        """The one text of an example, or two that the tokenizer joins."""
        if self.template is None:
            return (
                tuple(texts.values()) if self.joint is None else (self.joint.join(texts.values()),)
            )
        text = self.template.fill(texts)
        return (text if self.frame is None else self.frame(text),)

    def _tokenize(self, examples: Sequence[Texts]) -> list[Encoded]:
        if self.template is not None and self.template.virtual_tokens:
            return [self._soft(self._written(texts)[0]) for texts in examples]
        written = [self._written(texts) for texts in examples]
        made: dict[int, Encoded] = {}
        for count in (1, 2):
            places = [place for place, texts in enumerate(written) if len(texts) == count]
            if not places:
                continue
            columns = zip(*(written[place] for place in places), strict=True)
            encoding = self.tokenizer(
                *map(list, columns),
                add_special_tokens=self.special,
                return_attention_mask=False,
                return_token_type_ids=self.types and count == 2,
                verbose=False,
            )
            types = encoding.get("token_type_ids", [None] * len(places))
            for place, ids, kinds in zip(places, encoding["input_ids"], types, strict=True):
                made[place] = Encoded(ids[: len(ids) - self.ends], kinds)
        return [made[place] for place in range(len(written))]

    def _soft(self, text: str) -> Encoded:
        """A text with virtual tokens: what stands between them is tokenised by itself."""
        segments = text.split(VIRTUAL_TOKEN)
        read = self.tokenizer(
            [segment or " " for segment in segments], add_special_tokens=False, verbose=False
        )["input_ids"]
        before, behind = around(self.tokenizer) if self.special else ([], [])
        ids = list(before)
        for number, (segment, tokens) in enumerate(zip(segments, read, strict=True)):
            ids += [self.first + number - 1] if number else []
            ids += tokens if segment.strip() else []
        ids += behind
        return Encoded(ids[: len(ids) - self.ends], None)

    def _fit(self, example: Example, texts: Texts, encoded: Encoded, room: int) -> Encoded:
        length = len(encoded.ids)
        if not self.truncate:
            raise DataError(
                f"{example.where}: its input is {length} tokens long where {room} fit; "
                "shorten it, or ask for truncate"
            )
        while len(encoded.ids) > room:
            spans = {name: self._spans(text) for name, text in texts.items()}
            if not any(spans.values()):
                raise DataError(
                    f"{example.where}: even without its text the input is {len(encoded.ids)} "
                    f"tokens long where {room} fit"
                )
            level = _level([len(span) for span in spans.values()], len(encoded.ids) - room)
            texts = {name: self._cut(text, spans[name], level) for name, text in texts.items()}
            encoded = self._tokenize([texts])[0]
        return encoded

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Where in a text its tokens begin and end, in characters."""
        encoding = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return encoding["offset_mapping"]

    def _cut(self, text: str, spans: Sequence[tuple[int, int]], level: int) -> str:
        """The text without all but `level` of its tokens, and never unchanged if it had more.

        A character of several tokens is dropped as a whole.
        """
        if len(spans) <= level:
            return text
        if self.truncate == "start":
            return text[max(1, spans[len(spans) - level - 1][1]) :]
        return text[: min(len(text) - 1, spans[level][0])]


def stacked(texts: Sequence[Encoded], pad: int) -> Batch:
    """Texts as one batch, padded on the right: what a model takes."""
    ids = [text.ids for text in texts]
    batch = {"input_ids": padded(ids, pad), "attention_mask": mask_of(ids)}
    if any(text.types for text in texts):
        batch["token_type_ids"] = padded([text.types or [0] * len(text.ids) for text in texts], 0)
    return batch


INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What `stacked` writes."""


def _level(lengths: Sequence[int], excess: int) -> int:
    """The length to which the longest must come down so that `excess` tokens go in all."""
    level = max(lengths)
    while level and sum(max(0, length - level) for length in lengths) < excess:
        level -= 1
    return level


def trailing(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many special tokens the tokenizer sets behind a text."""
    return len(around(tokenizer)[1])


def around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer sets in front of a text, and behind it."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    starts = range(len(whole) - len(bare) + 1)
    start = next(start for start in starts if whole[start : start + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]
