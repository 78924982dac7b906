"""Chats: messages written by the tokenizer's template, and which parts of them the assistant wrote.

A turn of the assistant is what it writes itself: its text, and the token that ends its turn. Where
the template marks that by `{% generation %}`, the marks say where a turn begins. Elsewhere a turn
is what one message more adds to the chat before it with a generation prompt behind.
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
from inlay.tasks.base import list_of

Message = Mapping[str, str]
"""A `role` and a `content`."""

Span = tuple[int, int]
"""Where a part of a text begins and ends, in characters."""

ASSISTANT = "assistant"
MARKED = re.compile(r"{%-?\s*generation\s*-?%}")


@dataclass(frozen=True)
class Conversation:
    """A chat as one text.

    prompt: everything in front of the assistant's last turn. turns: its earlier ones in there.
    reply: its last turn, up to the token that ends it; None where the last word is another's.
    """

    prompt: str
    turns: tuple[Span, ...]
    reply: str | None


@dataclass(frozen=True)
class Chat:
    """How a tokenizer writes messages.

    before: messages in front of every chat, such as the system's. ends: the tokens that end a turn
    of the assistant, as text.
    """

    tokenizer: PreTrainedTokenizerBase
    before: tuple[Message, ...]
    ends: tuple[str, ...]

    @property
    def asked(self) -> Callable[[str], str]:
        """What puts a text into the chat, as the user's message, for the assistant to answer.

        Raises TaskError where the template refuses such messages.
        """

        def frame(text: str) -> str:
            return self._write([*self.before, {"role": "user", "content": text}], prompt=True)

        try:
            frame("a")
        except TemplateError as error:
            raise TaskError(f"the chat template refuses these messages: {error}") from None
        return frame

    def read(self, example: Example) -> Conversation:
        """The chat of an example. Raises DataError, which names the example."""
        messages = self._before(messages_of(example))
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

    def _before(self, messages: Sequence[Message]) -> list[Message]:
        """The messages behind those of every chat; a chat's own system message stays."""
        own = messages[0]["role"] == "system"
        return [*(one for one in self.before if not (own and one["role"] == "system")), *messages]

    def _write(self, messages: Sequence[Message], *, prompt: bool) -> str:
        written = self.tokenizer.apply_chat_template(
            [dict(one) for one in messages], tokenize=False, add_generation_prompt=prompt
        )
        assert isinstance(written, str)
        return written

    def _turns(self, example: Example, messages: Sequence[Message], text: str) -> list[Span]:
        """The assistant's turns in the text of a chat."""
        contents = [one["content"] for one in messages if one["role"] == ASSISTANT]
        marked = MARKED.search(self.tokenizer.get_chat_template())
        found = self._marked(messages) if marked else list(self._added(example, messages, text))
        if len(found) != len(contents):
            raise DataError(
                f"{example.where}: the chat template marks {len(found)} turns of its "
                f"{len(contents)} by the assistant"
            )
        both = zip(found, contents, strict=True)
        return [self._ended(example, text, span, content) for span, content in both]

    def _marked(self, messages: Sequence[Message]) -> list[Span]:
        """The turns as the template marks them.

        `apply_chat_template` tells only which tokens they are, and loses count where a tokenizer
        drops the white space at their ends.
        """
        special: dict[str, Any] = self.tokenizer.special_tokens_map
        marks: Any
        _, marks = render_jinja_template(  # type: ignore[str-unpack]
            conversations=[[dict(one) for one in messages]],
            chat_template=self.tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **special,
        )
        return [(begin, end) for begin, end in marks[0]]

    def _added(self, example: Example, messages: Sequence[Message], text: str) -> Iterator[Span]:
        """The turns by the difference that each message makes."""
        for place, message in enumerate(messages):
            if message["role"] == ASSISTANT:
                ahead = self._write(messages[:place], prompt=True) if place else ""
                whole = self._write(messages[: place + 1], prompt=False)
                if not text.startswith(whole) or not whole.startswith(ahead):
                    raise DataError(
                        f"{example.where}: the chat template writes message {place + 1} in another "
                        "way when others follow, so that the assistant's turns cannot be told "
                        "apart; mark them in the template by {% generation %} … {% endgeneration %}"
                    )
                yield len(ahead), len(whole)

    def _ended(self, example: Example, text: str, span: Span, content: str) -> Span:
        """A turn up to the token that ends it. White space behind is the template's."""
        begin, end = span
        said, content = text[begin:end], content.strip()
        at = len(said) - len(said.lstrip())
        if not said.startswith(content, at):
            raise DataError(
                f"{example.where}: the chat template does not write what the assistant said, "
                f"{content!r:.60}, right behind its generation prompt, but {said!r:.60}; mark the "
                "assistant's turns in the template by {% generation %} … {% endgeneration %}"
            )
        behind = text[begin + at + len(content) :]
        for one in self.ends:
            if behind.lstrip().startswith(one):
                return begin, len(text) - len(behind.lstrip()) + len(one)
        raise DataError(
            f"{example.where}: the chat template ends the assistant's turn with "
            f"{behind[:20]!r}, which is none of the tokens that end generation "
            f"({', '.join(self.ends)}); name its token in generation.eos_token_id"
        )


def messages_of(example: Example) -> list[Message]:
    """The messages of an example. Raises DataError, which names the example."""
    messages = list_of(example, "messages")
    if not messages:
        raise DataError(f"{example.where}: its list of messages is empty")
    for number, one in enumerate(messages, 1):
        if not isinstance(one, dict):
            raise DataError(f"{example.where}: message {number} is {kind_of(one)}, not an object")
        for name in ("role", "content"):
            if not isinstance(one.get(name), str):
                raise DataError(
                    f"{example.where}: message {number} has no text as its {name}; a message is "
                    '{"role": "user", "content": "…"}'
                )
    return messages


def within(offsets: Sequence[Span], turns: Sequence[Span]) -> tuple[int, ...]:
    """The numbers of the tokens that lie within one of the turns, both in characters."""
    return tuple(
        place
        for place, (left, right) in enumerate(offsets)
        if left < right and any(begin <= left and right <= end for begin, end in turns)
    )
