"""Templated: a task whose text is written by a template, which may have virtual tokens in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inlay.data.dataset import Example
from inlay.data.template import Template
from inlay.errors import TaskError
from inlay.tasks.base import Task


@dataclass(kw_only=True)
class Templated(Task, listed=False):
    """A task whose text is written by a template.

    template: how the fields are written, such as "{text} All in all, it was"; None for the task's
        own way.
    """

    template: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template is not None and set(Template(self.template).names) <= {"mask"}:
            raise TaskError(f"{self.name}: template {self.template!r} names no {{column}}")

    def bare(self, examples: Sequence[Example]) -> str:
        """The template that writes these examples in the task's own way."""
        pairs = any("text_pair" in example.fields for example in examples)
        return "{text} {text_pair}" if pairs else "{text}"

    @property
    def virtual(self) -> int:
        """See `Task`."""
        return 0 if self.template is None else Template(self.template).virtual_tokens

    def place(self, virtual: int, front: int, examples: Sequence[Example]) -> None:
        """See `Task`."""
        self.template = with_virtual(self.template or self.bare(examples), virtual, front)


def with_virtual(template: str, virtual: int, front: int) -> str:
    """The template with virtual tokens: `front` at its beginning, the rest behind its last column.

    In front of a mask or an answer they are nearest to where the base decides.
    """
    cut = template.rfind("{mask}")
    cut = template.rindex("}") + 1 if cut < 0 else cut
    ends = [f"{{p*{n}}}".replace("*1}", "}") if n else "" for n in (front, virtual - front)]
    return " ".join(
        part for part in (ends[0], template[:cut].strip(), ends[1], template[cut:].strip()) if part
    )
