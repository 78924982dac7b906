"""Templates: text with `{column}` and `{p}` in it, parsed once and filled for each row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter

from inlay.errors import DataError

VIRTUAL_TOKEN = "\ue000"
"""The character of private use that stands for one virtual token in a filled text."""


@dataclass(frozen=True)
class Template:
    """Text with `{column}` in it.

    A name in braces is looked up as it is: nothing is called, and there is no attribute or index
    access, conversion or format. `{p}` is a virtual token and `{p*3}` are three, which a method
    such as `PTuning` provides. `{{` and `}}` are single braces.

    text:  the template.
    parts: pairs of a text and the column whose value follows it, or None at the end.
    virtual_tokens: how many virtual tokens the template has.

    Raises DataError for anything else in braces.
    """

    text: str
    parts: tuple[tuple[str, str | None], ...] = field(init=False, repr=False, compare=False)
    virtual_tokens: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            parsed = list(Formatter().parse(self.text))
        except ValueError as error:
            raise DataError(
                f"template {self.text!r} cannot be read: {error}; write a brace as {{{{ or }}}}"
            ) from None
        parts: list[tuple[str, str | None]] = []
        virtual_tokens = 0
        for text, name, format_spec, conversion in parsed:
            if name is not None and (not name or format_spec or conversion):
                raise DataError(
                    f"template {self.text!r} has more than a column name in braces; "
                    "write {column} with nothing else"
                )
            count = _virtual_tokens(name)
            if count is None:
                if name is not None and name.startswith("p*"):
                    raise DataError(
                        f"template {self.text!r} has {{{name}}}, which is no number of virtual "
                        "tokens from 1 to 9999; write {p*3}"
                    )
                parts.append((text, name))
            else:
                virtual_tokens += count
                parts.append((text.rstrip(" ") + VIRTUAL_TOKEN * count, None))
        object.__setattr__(self, "parts", tuple(parts))
        object.__setattr__(self, "virtual_tokens", virtual_tokens)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns it uses, without repetition, in order."""
        return tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    def fill(self, values: Mapping[str, object]) -> str:
        """The text with the value of each column in place of its name.

        values: must hold all of `names`.

        Raises DataError where a value holds the character that stands for virtual tokens.
        """
        if self.virtual_tokens and any(VIRTUAL_TOKEN in str(values[name]) for name in self.names):
            raise DataError(
                f"a text holds the character {VIRTUAL_TOKEN!r}, which stands for virtual tokens; "
                "remove it from the data"
            )
        return "".join(
            text if name is None else text + str(values[name]) for text, name in self.parts
        )


def _virtual_tokens(name: str | None) -> int | None:
    """How many virtual tokens a name in braces stands for: `p` or `p*3`; None for a column."""
    match = re.fullmatch(r"p(?:\*([1-9]\d{0,3}))?", name or "")
    return None if match is None else int(match[1] or 1)
