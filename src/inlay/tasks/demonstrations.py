"""Demonstrations: worked examples, and a system message, that come before every source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inlay.data.dataset import Example
from inlay.data.template import VIRTUAL_TOKEN, Template
from inlay.tasks.messages import ASSISTANT, Message
from inlay.tasks.rows import field_of, texts_of


@dataclass(frozen=True)
class Demonstration:
    """A worked example: a source and its target, as texts."""

    source: str
    target: str


def demonstration(example: Example, template: Template, target: str) -> Demonstration:
    """An example as a demonstration, without virtual tokens.

    target: the name of the field with the target.

    Raises DataError, which names the example.
    """
    texts = {name: str(field_of(example, name)) for name in template.names}
    source = template.fill(texts).replace(VIRTUAL_TOKEN, "")
    return Demonstration(source, first_target(example, target))


def first_target(example: Example, name: str) -> str:
    """The target that is learned: the first of several."""
    return texts_of(example, name)[0]


def chat_messages(
    system: str | None, demonstrations: Sequence[Demonstration]
) -> tuple[Message, ...]:
    """The messages that begin every chat."""
    turns = [] if system is None else [("system", system)]
    for example in demonstrations:
        turns += [("user", example.source), (ASSISTANT, example.target)]
    return tuple({"role": role, "content": content} for role, content in turns)


def with_demonstrations(
    demonstrations: Sequence[Demonstration], separator: str
) -> Callable[[str], str] | None:
    """A function that writes demonstrations before a source; None where there are none.

    separator: between a source and its target.
    """
    if not demonstrations:
        return None
    texts = [f"{example.source}{separator}{example.target}\n\n" for example in demonstrations]
    opening = "".join(texts)
    return lambda text: opening + text
