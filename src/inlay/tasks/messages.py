"""The messages of a chat, in the one form that chat templates read.

Speakers may be called as in ShareGPT (`from: human`), texts `value`, and a text may come in parts,
`[{"type": "text", "text": …}]`. A call of a tool may be written as OpenAI does, with its arguments
as a text, as a `function_call`, or as a turn of its own. What comes out is
`{"role": …, "content": …, "tool_calls": [{"type": "function", "function": {…}}], …}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from inlay.data.dataset import Example
from inlay.data.raw import kind_of
from inlay.errors import DataError
from inlay.tasks.rows import list_of

Message = Mapping[str, Any]
"""A `role` and a `content`, which is None where the message only calls tools; `tool_calls`, …"""

ASSISTANT = "assistant"

ROLES = {
    "human": "user",
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bot": ASSISTANT,
    "model": ASSISTANT,
    "observation": "tool",
    "function_response": "tool",
}
"""Other names of speakers."""

CALL = "function_call"
"""The speaker of a turn that is a call, and the older field of a message for it."""

LEARNED = ("loss", "train", "weight")
"""The fields that say whether a turn of the assistant is learned."""

EXAMPLE = '{"role": "user", "content": "…"}'


def messages_of(example: Example) -> list[Message]:
    """The messages of an example. Raises DataError, which names the example."""
    messages = list_of(example, "messages")
    if not messages:
        raise DataError(f"{example.where}: its list of messages is empty")
    return [
        _message(f"{example.where}: message {number}", message)
        for number, message in enumerate(messages, 1)
    ]


def check_turns(example: Example) -> None:
    """Raise DataError, which names the example, where a turn of the assistant is empty."""
    for number, message in enumerate(messages_of(example), 1):
        says_nothing = not (message["content"] or "").strip() and not call_names(message)
        if message["role"] == ASSISTANT and says_nothing:
            raise DataError(
                f"{example.where}: message {number}, of the assistant, is empty; set empty_targets "
                "(--task.empty_targets true) to learn to say nothing"
            )


def tools_of(example: Example) -> list[Any] | None:
    """The tools that a chat may call, as its template reads them; None for none.

    Raises DataError, which names the example.
    """
    tools = example.fields.get("tools")
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"{example.where}: tools is a list of objects, not {tools!r:.80}")
    return tools


def is_learned(message: Message) -> bool:
    """Whether a message is a turn of the assistant that is learned.

    A turn is not where `loss` or `train` is false, or `weight` is 0.
    """
    flags = [message[name] for name in LEARNED if message.get(name) is not None]
    return message["role"] == ASSISTANT and all(flags)


def call_names(message: Message) -> list[str]:
    """The names of the functions that a message calls."""
    return [call["function"]["name"] for call in message.get("tool_calls") or ()]


def badness(text: str, messages: Sequence[Message]) -> tuple[int, int]:
    """How badly a chat is written, less being better.

    First how often the calls are named, negated; then how often a null or the arguments of a call
    are as only Python writes them.
    """
    names = [name for message in messages for name in call_names(message)]
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    objects = [repr(call["function"]["arguments"]) for call in calls]
    written = text.count("None") + sum(text.count(part) for part in objects if "'" in part)
    return -sum(text.count(name) for name in dict.fromkeys(names)), written


def as_text(messages: Sequence[Message]) -> list[Message]:
    """The messages with the arguments of calls as texts, for templates that add them to texts."""
    return [
        {**message, "tool_calls": [_with_text(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def without_nulls(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages without fields that are None, as transformers hands them to a template."""
    return [
        {name: value for name, value in message.items() if value is not None}
        for message in messages
    ]


def with_content(messages: Sequence[Message], content: str | None) -> list[Message]:
    """The messages with this content, an empty text or None, where one only calls tools."""
    return [
        {**message, "content": content}
        if call_names(message) and not message["content"]
        else message
        for message in messages
    ]


def _message(where: str, message: Any) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is {kind_of(message)}, not an object")
    fields = {
        name: value
        for name, value in message.items()
        if value is not None and name not in ("from", "value")
    }
    role = message.get("role", message.get("from"))
    if not isinstance(role, str):
        raise DataError(f"{where} has no text as its role; a message is {EXAMPLE}")
    content = message.get("content", message.get("value"))
    calls = message.get("tool_calls") or ()
    if CALL in fields:
        calls = [*calls, fields.pop(CALL)]
    if role == CALL:
        role, calls, content = ASSISTANT, _called(where, content), None
    fields.pop("tool_calls", None)
    if calls:
        if not isinstance(calls, list | tuple):
            raise DataError(f"{where}: tool_calls is a list of calls, not {calls!r:.80}")
        fields["tool_calls"] = [_call(where, call) for call in calls]
    elif content is None:
        raise DataError(
            f"{where} has no text as its content and calls no tool; a message is {EXAMPLE}"
        )
    return {**fields, "role": ROLES.get(role, role), "content": _text(where, content)}


def _text(where: str, content: Any) -> str | None:
    """The text of a message, of which parts follow each other."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise DataError(f"{where} has no text as its content; a message is {EXAMPLE}")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        text = part.get("text") if isinstance(part, Mapping) else part
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            raise DataError(f"{where} has a part {kind!r}, and only texts are read; leave it out")
        texts.append(text)
    return "".join(texts)


def _called(where: str, content: Any) -> list[Any]:
    """The calls of a turn whose text is their JSON."""
    try:
        value = json.loads(content) if isinstance(content, str) else content
    except ValueError as error:
        raise DataError(f"{where}: its call is not valid JSON: {error}") from None
    return list(value) if isinstance(value, list) else [value]


def _call(where: str, call: Any) -> dict[str, Any]:
    """A call with its arguments as an object, where they are the text of one."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        form = '{"function": {"name": "…", "arguments": {…}}}'
        raise DataError(f"{where}: a call is {form}, not {call!r:.80}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except ValueError:
            value = None
        arguments = value if isinstance(value, dict) else arguments
    function = {**function, "arguments": {} if arguments is None else arguments}
    others = {name: value for name, value in call.items() if name in ("id", "type")}
    return {"type": "function", **others, "function": function}


def _with_text(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": text}}
