"""Text with `{column}` in it: parsed once, filled for each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter

from inlay.errors import DataError


@dataclass(frozen=True)
class Template:
    """Text with `{column}` in it.

    A name in braces is looked up as it stands: nothing is called, and there is no attribute or
    index access, conversion or format. `{{` and `}}` write braces.

    Raises DataError on anything else.
    """

    text: str
    parts: tuple[tuple[str, str | None], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            parsed = list(Formatter().parse(self.text))
        except ValueError as error:
            raise DataError(f"template {self.text!r} cannot be read: {error}") from None
        for _, name, form, conversion in parsed:
            if name is not None and (not name or form or conversion):
                raise DataError(f"template {self.text!r} may hold plain {{column}} names only")
        object.__setattr__(self, "parts", tuple((text, name) for text, name, _, _ in parsed))

    @property
    def names(self) -> tuple[str, ...]:
        """The columns it reads, each once, in order."""
        return tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    def fill(self, values: Mapping[str, str | int | float]) -> str:
        """The text with every name replaced. `values` must hold all of `names`."""
        return "".join(
            text if name is None else text + str(values[name]) for text, name in self.parts
        )
