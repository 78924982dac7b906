"""Text with `{column}` and `{p}` in it: parsed once, filled for each row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter

from inlay.errors import DataError

VIRTUAL = "\ue000"
"""What stands in a filled text for each virtual token: a character of private use."""


@dataclass(frozen=True)
class Template:
    """Text with `{column}` in it.

    A name in braces is looked up as it stands: nothing is called, and there is no attribute or
    index access, conversion or format. `{p}` is a virtual token and `{p*3}` are three, which a
    method such as `PTuning` fills. `{{` and `}}` write braces.

    virtual: how many virtual tokens it has. Raises DataError on anything else.
    """

    text: str
    parts: tuple[tuple[str, str | None], ...] = field(init=False, repr=False, compare=False)
    virtual: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            parsed = list(Formatter().parse(self.text))
        except ValueError as error:
            raise DataError(f"template {self.text!r} cannot be read: {error}") from None
        for _, name, form, conversion in parsed:
            if name is not None and (not name or form or conversion):
                raise DataError(f"template {self.text!r} may hold plain {{column}} names only")
        parts: list[tuple[str, str | None]] = []
        virtual = 0
        for text, name, _, _ in parsed:
            soft = _soft(name)
            if soft is None:
                if name is not None and name.startswith("p*"):
                    raise DataError(f"template {self.text!r}: {{{name}}} is not like {{p*3}}")
                parts.append((text, name))
                continue
            count = int(soft[1] or 1)
            virtual += count
            parts.append((text.rstrip(" ") + VIRTUAL * count, None))
        object.__setattr__(self, "parts", tuple(parts))
        object.__setattr__(self, "virtual", virtual)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns it reads, each once, in order."""
        return tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    def fill(self, values: Mapping[str, object]) -> str:
        """The text with every name replaced. `values` must hold all of `names`.

        Raises DataError where a value holds the character that stands for virtual tokens.
        """
        if self.virtual and any(VIRTUAL in str(values[name]) for name in self.names):
            raise DataError(f"a text holds {VIRTUAL!r}, which stands for virtual tokens")
        return "".join(
            text if name is None else text + str(values[name]) for text, name in self.parts
        )


def _soft(name: str | None) -> re.Match[str] | None:
    return re.fullmatch(r"p(?:\*([1-9]\d{0,3}))?", name or "")
