"""Templated: a task whose text a template writes, with virtual tokens in it where it has some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from inlay.data.dataset import Example
from inlay.data.template import Template
from inlay.errors import TaskError
from inlay.tasks.base import B, O, Task


@dataclass(kw_only=True)
class Templated(Task[B, O], listed=False):
    """A task whose text a template writes.

    template: how the fields are written, such as "{text} All in all, it was"; None for the task's
        default.
    """

    template: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template is not None and set(Template(self.template).names) <= {"mask"}:
            raise TaskError(f"{self.name}: template {self.template!r} has no {{column}}")

    def default_template(self, examples: Sequence[Example]) -> str:
        """The template that writes these examples where none is given."""
        pairs = any("text_pair" in example.fields for example in examples)
        return "{text} {text_pair}" if pairs else "{text}"

    @property
    @override
    def virtual_tokens(self) -> int:
        return 0 if self.template is None else Template(self.template).virtual_tokens

    @override
    def place_virtual_tokens(self, count: int, before: int, examples: Sequence[Example]) -> None:
        template = self.template or self.default_template(examples)
        self.template = with_virtual_tokens(template, count, before)


def with_virtual_tokens(template: str, count: int, before: int) -> str:
    """A template with virtual tokens: `before` at its beginning, the rest after its last column.

    Before a mask or an answer they are nearest to where the base decides.
    """
    cut = template.rfind("{mask}")
    cut = template.rindex("}") + 1 if cut < 0 else cut
    first, second = (
        f"{{p*{n}}}".replace("*1}", "}") if n else "" for n in (before, count - before)
    )
    parts = (first, template[:cut].strip(), second, template[cut:].strip())
    return " ".join(part for part in parts if part)
