"""Every exception that inlay raises on purpose, in one tree.

    InlayError
    ├── SpecError        a method, field or spec that does not exist or has an impossible value
    ├── SiteError        a place that this model does not have
    │   └── PortError    the place exists, but cannot take the pieces of the method (extra keys, …)
    ├── NamingError      an inlay of that name is already attached, or none is attached
    ├── RowsError        rows that do not fit the batch
    ├── BusyError        another thread is inside a forward pass of the model that shall change
    ├── FileError        a file that is not a complete and valid inlay
    │   └── BaseError    a valid file that was made for another base
    ├── MergeError       a piece that cannot be folded into the weights
    │   ├── NotFoldableError   no linear map computes what the piece does
    │   ├── NoBiasError        the module has no bias that could hold it
    │   ├── TiedWeightsError   another part of the model has the same matrix
    │   └── QuantisedError     the base's weights are not floating-point numbers
    ├── LawError         a law that does not hold on this model
    ├── DataError        data that cannot be used; names the file and line
    ├── TaskError        a task that this model, tokenizer or label set cannot do
    ├── RecipeError      a recipe with an unknown or impossible field
    ├── FetchError       a model or data set that cannot be fetched, verified or loaded
    └── TrainingError    training cannot start or continue (non-finite loss, another checkpoint, …)

A message is one sentence that names the cause and then, where there is one, the cure. The command
line prints it on one line and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InlayError(Exception):
    """The base class: `except InlayError` catches every exception of this library."""


class SpecError(InlayError):
    """A method, field or spec that does not exist or has an impossible value."""


class SiteError(InlayError):
    """A place that this model does not have."""


class PortError(SiteError):
    """The place exists in this model, but cannot take the pieces of the method."""


class NamingError(InlayError):
    """An inlay of that name is already attached, or none of that name is attached."""


class RowsError(InlayError):
    """Rows that do not fit the batch."""


class BusyError(InlayError):
    """Another thread is inside a forward pass of the model that shall change."""


class FileError(InlayError):
    """A file that is not a complete and valid inlay."""


class BaseError(FileError):
    """A valid inlay file that was made for another base."""


class MergeError(InlayError):
    """A piece that cannot be folded into the base's weights."""


class NotFoldableError(MergeError):
    """A piece that no linear map computes."""


class NoBiasError(MergeError):
    """A piece that changes a bias, in a module without one."""


class TiedWeightsError(MergeError):
    """A matrix that another part of the model uses too."""


class QuantisedError(MergeError):
    """Weights that are not floating-point numbers."""


class LawError(InlayError):
    """A law that does not hold on this model."""


class DataError(InlayError):
    """A row, file or other source of data that cannot be used."""


class TaskError(InlayError):
    """A task that this model, tokenizer or label set cannot do."""


class RecipeError(InlayError):
    """A recipe with an unknown or impossible field."""


class FetchError(InlayError):
    """A model or data set that cannot be fetched, verified or loaded."""


class TrainingError(InlayError):
    """Training cannot start or continue."""


def similar(word: str, known: Iterable[str]) -> str | None:
    """The most similar of the known names, whatever the case of letters; None where none is."""
    by_letters = {name.lower(): name for name in sorted(known)}  # 'Lora' is LoRA, and 'lorra' too
    matches = get_close_matches(word.lower(), by_letters, n=1, cutoff=0.6)
    return by_letters[matches[0]] if matches else None


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the cure.

    Returns `; did you mean 'x'?` with the most similar of the known names, or a list of all of
    them where none is similar.
    """
    known = sorted(known)
    meant = similar(word, known)
    if meant is not None:
        return f"; did you mean {meant!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def together(messages: Iterable[str], subject: str) -> str:
    """Several messages as one, numbered where there are several.

    subject: what they are about, such as "the recipe".
    """
    parts = list(dict.fromkeys(messages))
    if len(parts) == 1:
        return parts[0]
    numbered = "; ".join(f"({number}) {part}" for number, part in enumerate(parts, 1))
    return f"{subject} has {len(parts)} faults: {numbered}"
