"""Chats: messages written by the tokenizer's template, and which parts of them the assistant wrote.

A turn of the assistant is what it generates: its text, and the token that ends its turn. Where the
template marks that by `{% generation %}`, a turn begins where the mark does. In other templates a
turn is what its message adds to the chat before it, written with a generation prompt at the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from inlay.data.dataset import Example
from inlay.data.raw import kind_of
from inlay.errors import DataError, TaskError
from inlay.tasks.rows import list_of

Message = Mapping[str, str]
"""A `role` and a `content`."""

Span = tuple[int, int]
"""Where a part of a text begins and ends, in characters."""

ASSISTANT = "assistant"
MARKED = re.compile(r"{%-?\s*generation\s*-?%}")


@dataclass(frozen=True)
class Conversation:
    """A chat as one text.

    prompt: everything before the assistant's last turn.
    turns: where its earlier turns are in the prompt.
    reply: its last turn, with the token that ends it; None where the last message is another's.
    """

    prompt: str
    turns: tuple[Span, ...]
    reply: str | None


@dataclass(frozen=True)
class Chat:
    """How a tokenizer writes messages.

    before: messages that begin every chat, such as the system's.
    end_tokens: those that end a turn of the assistant, as text.
    """

    tokenizer: PreTrainedTokenizerBase
    before: tuple[Message, ...]
    end_tokens: tuple[str, ...]

    def user_message(self) -> Callable[[str], str]:
        """A function that writes a text as the user's message, for the assistant to answer.

        Raises TaskError where the template refuses such messages.
        """

        def wrap(text: str) -> str:
            return self._write([*self.before, {"role": "user", "content": text}], prompt=True)

        try:
            wrap("a")
        except TemplateError as error:
            raise TaskError(f"the chat template refuses these messages: {error}") from None
        return wrap

    def read(self, example: Example) -> Conversation:
        """The chat of an example. Raises DataError, which names the example."""
        messages = self._with_first(messages_of(example))
        try:
            if messages[-1]["role"] != ASSISTANT:
                prompt, reply = self._write(messages, prompt=True), None
                turns = self._turns(example, messages, prompt)
            else:
                text = self._write(messages, prompt=False)
                *turns, (begin, end) = self._turns(example, messages, text)
                prompt, reply = text[:begin], text[begin:end]
        except TemplateError as error:
            raise DataError(
                f"{example.where}: the chat template refuses its messages: {error}"
            ) from None
        return Conversation(prompt, tuple(turns), reply)

    def _with_first(self, messages: Sequence[Message]) -> list[Message]:
        """The messages after those of every chat; a chat's own system message replaces ours."""
        has_system = messages[0]["role"] == "system"
        first = [m for m in self.before if not (has_system and m["role"] == "system")]
        return [*first, *messages]

    def _write(self, messages: Sequence[Message], *, prompt: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=prompt
        )
        assert isinstance(text, str)
        return text

    def _turns(self, example: Example, messages: Sequence[Message], text: str) -> list[Span]:
        """The assistant's turns in the text of a chat."""
        contents = [message["content"] for message in messages if message["role"] == ASSISTANT]
        marked = MARKED.search(self.tokenizer.get_chat_template())
        spans = self._marked(messages) if marked else list(self._added(example, messages, text))
        if len(spans) != len(contents):
            raise DataError(
                f"{example.where}: the chat template marks {len(spans)} turns of its "
                f"{len(contents)} by the assistant"
            )
        pairs = zip(spans, contents, strict=True)
        return [self._with_end(example, text, span, content) for span, content in pairs]

    def _marked(self, messages: Sequence[Message]) -> list[Span]:
        """The turns as the template marks them.

        `apply_chat_template` returns only which tokens they are, and is wrong where a tokenizer
        drops the white space at their ends.
        """
        special: dict[str, Any] = self.tokenizer.special_tokens_map
        marks: Any
        _, marks = render_jinja_template(  # type: ignore[str-unpack]
            conversations=[[dict(message) for message in messages]],
            chat_template=self.tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **special,
        )
        return [(begin, end) for begin, end in marks[0]]

    def _added(self, example: Example, messages: Sequence[Message], text: str) -> Iterator[Span]:
        """The turns by what each message adds to the text."""
        for place, message in enumerate(messages):
            if message["role"] == ASSISTANT:
                before = self._write(messages[:place], prompt=True) if place else ""
                after = self._write(messages[: place + 1], prompt=False)
                if not text.startswith(after) or not after.startswith(before):
                    raise DataError(
                        f"{example.where}: the chat template writes message {place + 1} "
                        "differently when others follow, so the assistant's turns cannot be found; "
                        "mark them in the template by {% generation %} … {% endgeneration %}"
                    )
                yield len(before), len(after)

    def _with_end(self, example: Example, text: str, span: Span, content: str) -> Span:
        """A turn up to the token that ends it. White space after that is the template's."""
        begin, end = span
        turn, content = text[begin:end], content.strip()
        start = len(turn) - len(turn.lstrip())
        if not turn.startswith(content, start):
            raise DataError(
                f"{example.where}: the chat template does not write the assistant's text, "
                f"{content!r:.60}, right after its generation prompt, but {turn!r:.60}; mark the "
                "assistant's turns in the template by {% generation %} … {% endgeneration %}"
            )
        rest = text[begin + start + len(content) :]
        for token in self.end_tokens:
            if rest.lstrip().startswith(token):
                return begin, len(text) - len(rest.lstrip()) + len(token)
        raise DataError(
            f"{example.where}: the chat template ends the assistant's turn with "
            f"{rest[:20]!r}, which is none of the tokens that end generation "
            f"({', '.join(self.end_tokens)}); name its token in generation.eos_token_id"
        )


def messages_of(example: Example) -> list[Message]:
    """The messages of an example. Raises DataError, which names the example."""
    messages = list_of(example, "messages")
    if not messages:
        raise DataError(f"{example.where}: its list of messages is empty")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            kind = kind_of(message)
            raise DataError(f"{example.where}: message {number} is {kind}, not an object")
        for name in ("role", "content"):
            if not isinstance(message.get(name), str):
                raise DataError(
                    f"{example.where}: message {number} has no text as its {name}; a message is "
                    '{"role": "user", "content": "…"}'
                )
    return messages


def tokens_within(offsets: Sequence[Span], turns: Sequence[Span]) -> tuple[int, ...]:
    """Which tokens lie within one of the turns.

    offsets: where each token begins and ends, in characters. turns: the same of each turn.
    """
    return tuple(
        place
        for place, (left, right) in enumerate(offsets)
        if left < right and any(begin <= left and right <= end for begin, end in turns)
    )
