"""Errors for a constructor that gets an unknown field: the same hint in Python as in a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from inlay.errors import InlayError, nearest


def check_arguments(
    kind: Any,
    positional: Collection[Any],
    named: Mapping[str, Any],
    error: type[InlayError],
) -> None:
    """Raise `error` where the constructor of a dataclass does not take these arguments.

    Python's own TypeError does not say which field was meant. What is missing is left to Python:
    copying and unpickling create an object without any argument.

    kind: the class. positional, named: what it is called with. error: the class to raise.
    """
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return  # no dataclass, or one with a constructor of its own
    by_name = [p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY]
    by_position = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    for name in named:
        if name not in by_name:
            raise error(f"{kind.__name__} has no field {name!r}{nearest(name, by_name)}")
    if len(positional) > len(by_position):
        example = f", as in {kind.__name__}({by_name[0]}=…)" if by_name else ""
        raise error(
            f"{kind.__name__} takes {len(by_position)} values without a name, not "
            f"{len(positional)}; give fields by name{example}"
        )
    for name in by_position[: len(positional)]:
        if name in named:
            raise error(f"{kind.__name__} has two values for {name!r}; give one")
