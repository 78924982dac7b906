"""Reader: fields of an example -> token ids that fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from inlay.data.dataset import Example
from inlay.data.template import VIRTUAL_TOKEN, Template
from inlay.errors import DataError
from inlay.tasks.base import Bound, Truncation
from inlay.tasks.rows import field_of, padded, padded_inputs
from inlay.tasks.special_tokens import count_trailing, special_tokens_around

Texts = Mapping[str, str]
"""The free texts of one example by field name: what may be shortened."""


@dataclass(frozen=True)
class Encoded:
    """Token ids, and for a pair which of the two texts each belongs to."""

    ids: list[int]
    token_type_ids: list[int] | None


@dataclass(frozen=True)
class Reader:
    """Writes the input of an example as text and tokenises it.

    template: how the fields make one text; None for `text`, with `text_pair` where there is one.
    separator: written between `text` and `text_pair`; None to let the tokenizer join them.
    wrap: puts the text into a fixed context, such as a chat; None to leave it as it is.
    add_special_tokens: whether the tokenizer adds its special tokens.
    drop_trailing: how many special tokens after the text are removed, where a decoder continues.
    token_type_ids: whether the model reads which text of a pair a token belongs to.
    truncate: from which side a text that is too long is shortened, if at all.
    first_virtual_id: the id of the first virtual token.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template | None
    separator: str | None
    wrap: Callable[[str], str] | None
    add_special_tokens: bool
    drop_trailing: int
    token_type_ids: bool
    truncate: Truncation
    first_virtual_id: int

    @staticmethod
    def for_text(bound: Bound, template: str | None, truncate: Truncation) -> Reader:
        """The reader of a text or a pair of texts that a head then classifies."""
        decoder, tokenizer = bound.chart.kind == "decoder", bound.tokenizer
        return Reader(
            tokenizer=tokenizer,
            template=None if template is None else Template(template),
            separator="\n" if decoder else None,
            wrap=None,
            add_special_tokens=True,
            drop_trailing=count_trailing(tokenizer) if decoder else 0,
            token_type_ids=bound.chart.stacks[0].takes("token_type_ids"),
            truncate=truncate,
            first_virtual_id=bound.first_virtual_id,
        )

    def read(self, examples: Sequence[Example], max_lengths: Sequence[int | None]) -> list[Encoded]:
        """The examples as tokens, each no longer than its maximum.

        Raises DataError, which names the example: a missing field, no tokens, too many tokens.
        """
        texts = [self._texts(example) for example in examples]
        encoded = self._tokenize(texts)
        for place, (example, limit) in enumerate(zip(examples, max_lengths, strict=True)):
            if limit is not None and len(encoded[place].ids) > limit:
                encoded[place] = self._truncate(example, texts[place], encoded[place], limit)
            if not encoded[place].ids:
                raise DataError(f"{example.where}: its text is empty, which leaves no tokens")
        return encoded

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
        """The one text of an example, or two for the tokenizer to join."""
        if self.template is None:
            parts = tuple(texts.values())
            return parts if self.separator is None else (self.separator.join(parts),)
        text = self.template.fill(texts)
        return (text if self.wrap is None else self.wrap(text),)

    def _tokenize(self, examples: Sequence[Texts]) -> list[Encoded]:
        if self.template is not None and self.template.virtual_tokens:
            return [self._with_virtual_tokens(self._written(texts)[0]) for texts in examples]
        written = [self._written(texts) for texts in examples]
        encoded: dict[int, Encoded] = {}
        for count in (1, 2):  # single texts, then pairs
            places = [place for place, texts in enumerate(written) if len(texts) == count]
            if not places:
                continue
            columns = zip(*(written[place] for place in places), strict=True)
            encoding = self.tokenizer(
                *map(list, columns),
                add_special_tokens=self.add_special_tokens,
                return_attention_mask=False,
                return_token_type_ids=self.token_type_ids and count == 2,
                verbose=False,
            )
            types = encoding.get("token_type_ids", [None] * len(places))
            for place, ids, row_types in zip(places, encoding["input_ids"], types, strict=True):
                encoded[place] = Encoded(ids[: len(ids) - self.drop_trailing], row_types)
        return [encoded[place] for place in range(len(written))]

    def _with_virtual_tokens(self, text: str) -> Encoded:
        """A text with virtual tokens: each segment between them is tokenised by itself."""
        segments = text.split(VIRTUAL_TOKEN)
        tokens = self.tokenizer(
            [segment or " " for segment in segments], add_special_tokens=False, verbose=False
        )["input_ids"]
        before, after = (
            special_tokens_around(self.tokenizer) if self.add_special_tokens else ([], [])
        )
        ids = list(before)
        for number, (segment, segment_ids) in enumerate(zip(segments, tokens, strict=True)):
            ids += [self.first_virtual_id + number - 1] if number else []
            ids += segment_ids if segment.strip() else []
        ids += after
        return Encoded(ids[: len(ids) - self.drop_trailing], None)

    def _truncate(self, example: Example, texts: Texts, encoded: Encoded, limit: int) -> Encoded:
        length = len(encoded.ids)
        if not self.truncate:
            raise DataError(
                f"{example.where}: its input is {length} tokens long and only {limit} fit; "
                "shorten it, or set truncate"
            )
        while len(encoded.ids) > limit:
            spans = {name: self._token_spans(text) for name, text in texts.items()}
            if not any(spans.values()):
                raise DataError(
                    f"{example.where}: even without its text the input is {len(encoded.ids)} "
                    f"tokens long and only {limit} fit"
                )
            lengths = [len(span) for span in spans.values()]
            length = _common_length(lengths, len(encoded.ids) - limit)
            texts = {name: self._cut(text, spans[name], length) for name, text in texts.items()}
            encoded = self._tokenize([texts])[0]
        return encoded

    def _token_spans(self, text: str) -> list[tuple[int, int]]:
        """Where the tokens of a text begin and end, in characters."""
        encoding = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return encoding["offset_mapping"]

    def _cut(self, text: str, spans: Sequence[tuple[int, int]], length: int) -> str:
        """The text without all but `length` of its tokens, and never unchanged if it had more.

        A character of several tokens is dropped as a whole.
        """
        if len(spans) <= length:
            return text
        if self.truncate == "start":
            return text[max(1, spans[len(spans) - length - 1][1]) :]
        return text[: min(len(text) - 1, spans[length][0])]


def text_inputs(texts: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Texts as the inputs of a model, padded on the right."""
    inputs = padded_inputs([text.ids for text in texts], pad_id)
    if any(text.token_type_ids for text in texts):
        types = [text.token_type_ids or [0] * len(text.ids) for text in texts]
        inputs["token_type_ids"] = padded(types, 0)
    return inputs


def _common_length(lengths: Sequence[int], excess: int) -> int:
    """To which length the longest texts are cut so that `excess` tokens are removed in all."""
    length = max(lengths)
    while length and sum(max(0, each - length) for each in lengths) < excess:
        length -= 1
    return length
