"""Every exception inlay raises on purpose, in one tree.

    InlayError
    ├── SpecError        a method, field or JSON spec that does not exist or has an impossible value
    ├── SiteError        a place that this model does not have
    │   └── PortError    the place exists, the way in does not (attention that cannot take keys, …)
    ├── NamingError      an inlay of that name is already attached, or none is
    ├── RowsError        rows that do not fit the batch
    ├── FileError        a file that is not a whole, honest inlay
    │   └── BaseError    a whole file, made for another base
    ├── MergeError       a piece that cannot be folded into the weights
    ├── LawError         a law that does not hold on this model
    ├── DataError        a row or file of data that cannot be used; names the file and line
    ├── TaskError        a task that this model, tokenizer or label set cannot do
    ├── RecipeError      a recipe with an unknown or impossible field
    ├── FetchError       a model or data file that could not be fetched or verified
    └── TrainingError    training cannot go on (non-finite loss, a checkpoint from another run, …)

A message is one sentence that names the cause, and where there is one, the cure. The command
line prints it on one line and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InlayError(Exception):
    """The root: `except InlayError` catches whatever this library refuses."""


class SpecError(InlayError):
    """A method, field or JSON spec that does not exist or has an impossible value."""


class SiteError(InlayError):
    """A place that this model does not have."""


class PortError(SiteError):
    """The place exists, but the way in that the method needs does not."""


class NamingError(InlayError):
    """An inlay of that name is already attached, or none of that name is."""


class RowsError(InlayError):
    """Rows that do not fit the batch."""


class FileError(InlayError):
    """A file that is not a whole, honest inlay."""


class BaseError(FileError):
    """A whole inlay file, made for another base."""


class MergeError(InlayError):
    """A piece that cannot be folded into the base's weights."""


class LawError(InlayError):
    """A law that does not hold on this model."""


class DataError(InlayError):
    """A row or file of data that cannot be used."""


class TaskError(InlayError):
    """A task that this model, tokenizer or label set cannot do."""


class RecipeError(InlayError):
    """A recipe with an unknown or impossible field."""


class FetchError(InlayError):
    """A model or data file that could not be fetched or verified."""


class TrainingError(InlayError):
    """Training cannot start or go on."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the whole list where nothing is near. For the end of a message."""
    known = sorted(known)
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:  # case alone should never hide the right name
        close = [name for name in known if name.lower() == word.lower()]
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
