"""Forms in which others write rows of texts and chats, and the fields that tasks read of them.

    {"conversations": [{"from": "human", "value": …}, …]}                   messages
    {"instruction": …, "input": …, "output": …, "system": …, "history": …}  source, target; messages
    {"prompt": …, "completion": …}, texts or messages                       source, target; messages

A field is derived only where a task needs it and the row has no column of its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inlay.data.raw import BadRow

CHATS = ("conversations", "conversation", "dialogue", "dialog", "chat", "messages")
"""Columns that hold the messages of a chat."""

INSTRUCTIONS = ("instruction",)
INPUTS = ("input", "context")
OUTPUTS = ("output", "response")
PROMPTS = ("prompt",)
COMPLETIONS = ("completion", "response")

Fields = Mapping[Any, Any]


def derived(field: str, row: Fields) -> Any:
    """The value of a field that a row has in another form; None where it has none.

    Raises BadRow where a part of the row would be lost.
    """
    if field == "messages":
        return _messages(row)
    if field == "source":
        return _source(row)
    if field == "target":
        return _target(row)
    return None


def hint(field: str, column: str, row: Fields) -> str:
    """The end of a message about a missing field: what in the row could be meant.

    column: that the field should be in.
    """
    if len(row) == 1 and column in str(next(iter(row))):
        marks = [mark for mark in str(next(iter(row))) if not (mark.isalnum() or mark in "_ -")]
        if marks:
            return f"; if {marks[0]!r} separates the cells, name it: delimiter={marks[0]!r}"
    chat = _chat(row) is not None or _is_chat(_first(row, PROMPTS))
    if field in ("source", "target") and chat:
        return "; for rows of chats give chat='messages' (--task.chat messages)"
    if field == "messages" and isinstance(row.get("source"), str):
        return "; for rows of texts leave chat='messages' out"
    if field == "labels":
        flags = [str(name) for name, value in row.items() if is_flag(value)]
        if len(flags) > 1:
            return f"; columns of 0 and 1 are read by columns={ {'labels': flags} }"
    return ""


def is_flag(value: object) -> bool:
    """Whether a value is 0 or 1, as a number, a truth value or a text."""
    return str(value).strip().lower() in ("0", "1", "0.0", "1.0", "true", "false")


def is_set(value: object) -> bool:
    """Whether a flag is 1."""
    return str(value).strip().lower() in ("1", "1.0", "true")


def _messages(row: Fields) -> list[Any] | None:
    chat = _chat(row)
    if chat is not None:
        return [*_system(row), *chat]
    prompt, completion = _first(row, PROMPTS), _first(row, COMPLETIONS)
    if _is_chat(prompt):
        assert isinstance(prompt, Sequence)
        return [*prompt, *(_reply(completion) if completion is not None else ())]
    if prompt is None:
        prompt, completion = _instruction(row), _first(row, OUTPUTS)
    if prompt is None:
        return None
    history = row.get("history") or ()
    if not isinstance(history, list | tuple) or any(
        not isinstance(pair, list | tuple) or len(pair) != 2 for pair in history
    ):
        raise BadRow("column 'history' is a list of pairs of texts, [[question, answer], …]")
    turns = [*history, (prompt, completion)]
    messages = [*_system(row)]
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages += _reply(answer) if answer is not None else ()
    return messages


def _reply(completion: Any) -> list[Any]:
    if _is_chat(completion):
        return list(completion)
    return [{"role": "assistant", "content": completion}]


def _source(row: Fields) -> Any:
    for name in ("history", "system"):
        if row.get(name) and _first(row, (*INSTRUCTIONS, *PROMPTS)) is not None:
            raise BadRow(
                f"its {name} would be lost; chat='messages' (--task.chat messages) reads it, and "
                "a template that names its columns leaves it out"
            )
    instruction = _instruction(row)
    if instruction is not None:
        return instruction
    prompt = _first(row, PROMPTS)
    return None if _is_chat(prompt) else prompt


def _target(row: Fields) -> Any:
    if _first(row, INSTRUCTIONS) is not None:
        return _first(row, OUTPUTS)
    completion = _first(row, COMPLETIONS) if _first(row, PROMPTS) is not None else None
    return None if _is_chat(completion) else completion


def _instruction(row: Fields) -> Any:
    """An instruction, and its input on the next line where it has one."""
    instruction, more = _first(row, INSTRUCTIONS), _first(row, INPUTS)
    if isinstance(instruction, str) and isinstance(more, str) and more.strip():
        return f"{instruction}\n{more}" if instruction.strip() else more
    return instruction


def _system(row: Fields) -> list[dict[str, Any]]:
    system = row.get("system")
    return [{"role": "system", "content": system}] if isinstance(system, str) and system else []


def _chat(row: Fields) -> list[Any] | None:
    for name in CHATS:
        if _is_chat(row.get(name)):
            return list(row[name])
    prompt = _first(row, PROMPTS)
    return list(prompt) if _is_chat(prompt) and _first(row, COMPLETIONS) is None else None


def _is_chat(value: object) -> bool:
    """Whether a value is a list of messages, each with its speaker."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in value)
    )


def _first(row: Fields, names: Sequence[str]) -> Any:
    """The first of some columns that is not null; None without any."""
    return next((row[name] for name in names if row.get(name) is not None), None)
