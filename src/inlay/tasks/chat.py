"""Chats: messages written by the tokenizer's template, and which parts of them the assistant wrote.

A turn of the assistant is what it generates: its text, its calls of tools, and the token that ends
its turn. Where the template marks that by `{% generation %}`, a turn begins where the mark does. In
other templates a turn is what its message adds to the chat before it, written with a generation
prompt at the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from inlay.data.dataset import Example
from inlay.errors import DataError, TaskError
from inlay.tasks.messages import (
    ASSISTANT,
    Message,
    as_text,
    badness,
    call_names,
    is_learned,
    messages_of,
    tools_of,
    with_content,
    without_nulls,
)

Span = tuple[int, int]
"""Where a part of a text begins and ends, in characters."""

Tools = list[Any] | None

MARKED = re.compile(r"{%-?\s*generation\s*-?%}")

UNWRITABLE = (TemplateError, TypeError)
"""What a template raises for messages that it does not take."""


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
        """The chat of an example.

        A chat that ends with the assistant's words ends for us with the last of its turns that is
        learned.

        Raises DataError, which names the example.
        """
        messages, tools = self._with_first(messages_of(example)), tools_of(example)
        ends_with_assistant = messages[-1]["role"] == ASSISTANT
        while ends_with_assistant and not is_learned(messages[-1]):
            messages.pop()
            if not messages:
                raise DataError(f"{example.where}: no turn of the assistant is to be learned")
        try:
            messages = self._writable(messages, tools)
            text = self._write(messages, tools, prompt=not ends_with_assistant)
            spans = self._turns(example, messages, tools, text)
        except UNWRITABLE as error:
            raise DataError(
                f"{example.where}: the chat template refuses its messages: {error}"
            ) from None
        turns = [span for span, message in spans if is_learned(message)]
        if not ends_with_assistant:
            return Conversation(text, tuple(turns), None)
        begin, end = turns.pop()
        return Conversation(text[:begin], tuple(turns), text[begin:end])

    def _with_first(self, messages: Sequence[Message]) -> list[Message]:
        """The messages after those of every chat; a chat's own system message replaces ours."""
        has_system = messages[0]["role"] == "system"
        first = [m for m in self.before if not (has_system and m["role"] == "system")]
        return [*first, *messages]

    def _writable(self, messages: list[Message], tools: Tools) -> list[Message]:
        """The messages in a form that the template writes.

        Templates differ in what they take as the content of a message that only calls tools, none
        or an empty text, and as the arguments of a call, an object or a text.
        """
        if not any(call_names(message) for message in messages):
            return messages
        forms = [
            form
            for each in (messages, as_text(messages))
            for form in (each, with_content(each, ""), with_content(each, None))
        ]
        error: Exception | None = None
        texts: dict[int, str] = {}
        for number, form in enumerate(forms):
            try:
                texts[number] = self._write(form, tools, prompt=False)
            except UNWRITABLE as problem:
                error = error or problem
        if not texts:
            assert error is not None
            raise error
        return list(forms[min(texts, key=lambda number: badness(texts[number], messages))])

    def _write(self, messages: Sequence[Message], tools: Tools = None, *, prompt: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            without_nulls(messages),
            tools=tools,
            tokenize=False,
            add_generation_prompt=prompt,
        )
        assert isinstance(text, str)
        return text

    def _turns(
        self, example: Example, messages: Sequence[Message], tools: Tools, text: str
    ) -> list[tuple[Span, Message]]:
        """The assistant's turns in the text of a chat, and their messages."""
        turns = [message for message in messages if message["role"] == ASSISTANT]
        marked = MARKED.search(self.tokenizer.get_chat_template()) is not None
        if marked:
            spans = self._marked(messages, tools)
        else:
            spans = list(self._added(example, messages, tools, text))
        if len(spans) != len(turns):
            raise DataError(
                f"{example.where}: the chat template marks {len(spans)} turns of its "
                f"{len(turns)} by the assistant"
            )
        return [
            (self._with_end(example, text, span, message, marked), message)
            for span, message in zip(spans, turns, strict=True)
        ]

    def _marked(self, messages: Sequence[Message], tools: Tools) -> list[Span]:
        """The turns as the template marks them.

        `apply_chat_template` returns only which tokens they are, and is wrong where a tokenizer
        drops the white space at their ends.
        """
        special: dict[str, Any] = self.tokenizer.special_tokens_map
        marks: Any
        _, marks = render_jinja_template(  # type: ignore[str-unpack]
            conversations=[without_nulls(messages)],
            tools=tools,
            chat_template=self.tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **special,
        )
        return [(begin, end) for begin, end in marks[0]]

    def _added(
        self, example: Example, messages: Sequence[Message], tools: Tools, text: str
    ) -> Iterator[Span]:
        """The turns by what each message adds to the text."""
        for place, message in enumerate(messages):
            if message["role"] == ASSISTANT:
                before = self._write(messages[:place], tools, prompt=True) if place else ""
                after = self._write(messages[: place + 1], tools, prompt=False)
                if not text.startswith(after) or not after.startswith(before):
                    raise DataError(
                        f"{example.where}: the chat template writes message {place + 1} "
                        "differently when others follow, so the assistant's turns cannot be found; "
                        "mark them in the template by {% generation %} … {% endgeneration %}"
                    )
                yield len(before), len(after)

    def _with_end(
        self, example: Example, text: str, span: Span, message: Message, marked: bool
    ) -> Span:
        """A turn up to the token that ends it. White space after that is the template's."""
        begin, end = span
        turn, content, calls = (
            text[begin:end],
            (message["content"] or "").strip(),
            call_names(message),
        )
        for name in calls:
            if name not in turn:
                raise DataError(
                    f"{example.where}: the chat template does not write the assistant's call of "
                    f"{name!r}; give the tokenizer a template that writes tool_calls"
                )
        start = len(turn) - len(turn.lstrip())
        if not calls and not turn.startswith(content, start) and not (marked and content in turn):
            raise DataError(
                f"{example.where}: the chat template does not write the assistant's text, "
                f"{content!r:.60}, right after its generation prompt, but {turn!r:.60}; mark the "
                "assistant's turns in the template by {% generation %} … {% endgeneration %}"
            )
        if calls and content not in turn:
            raise DataError(
                f"{example.where}: the chat template leaves out what the assistant says next to a "
                f"call, {content!r:.60}; give the tokenizer a template that writes both"
            )
        rest = text[begin + start + len(content) :]
        if calls or not turn.startswith(content, start):
            rest = self._after_body(text, span)
        for token in self.end_tokens:
            if rest.lstrip().startswith(token):
                return begin, len(text) - len(rest.lstrip()) + len(token)
        raise DataError(
            f"{example.where}: the chat template ends the assistant's turn with "
            f"{rest[:20]!r}, which is none of the tokens that end generation "
            f"({', '.join(self.end_tokens)}); name its token in generation.eos_token_id"
        )

    def _after_body(self, text: str, span: Span) -> str:
        """The text from the token on that ends a turn, which is its last or comes after it."""
        begin, end = span
        turn = text[begin:end].rstrip()
        for token in self.end_tokens:
            if turn.endswith(token):
                return text[begin + len(turn) - len(token) :]
        return text[end:]


def tokens_within(offsets: Sequence[Span], turns: Sequence[Span]) -> tuple[int, ...]:
    """Which tokens lie within one of the turns.

    offsets: where each token begins and ends, in characters. turns: the same of each turn.
    """
    return tuple(
        place
        for place, (left, right) in enumerate(offsets)
        if left < right and any(begin <= left and right <= end for begin, end in turns)
    )
