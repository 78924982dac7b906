"""Starting values from a saved inlay, to train on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inlay.core.method import Method
from inlay.errors import RecipeError
from inlay.files.format import InlayFile, read
from inlay.handle import Inlay, load
from inlay.methods.head import Head
from inlay.tasks import Task


def adopt_labels(task: Task, file: InlayFile) -> None:
    """Give a task without labels those of the file's trained head, in their order."""
    for method in file.spec.methods:
        if isinstance(method, Head):
            task.set_labels(method.labels)


def read_start(path: str | None) -> InlayFile | None:
    """The file to start from, if there is one. Raises FileError."""
    return None if path is None else read(Path(path))


def start_from(handle: Inlay, file: InlayFile, tokenizer: Any) -> None:
    """Give an attached inlay the tensors of a file; methods that the file lacks stay as they are.

    Raises RecipeError where the file has a method that the inlay lacks; FileError and BaseError as
    `load` does.
    """
    indices = _indices(handle, file)
    other = load(handle.model, file.path, name=f"{handle.name[:90]}-start", tokenizer=tokenizer)
    try:
        handle.copy_from(other, indices)
    finally:
        other.detach()


def _indices(handle: Inlay, file: InlayFile) -> dict[int, int]:
    """The number of each of the file's methods in the inlay: here -> there."""
    methods = handle.spec.methods
    indices: dict[int, int] = {}
    for number, wanted in enumerate(file.spec.methods):
        free = [index for index in range(len(methods)) if index not in indices]
        index = next((index for index in free if methods[index] == wanted), None)
        if index is None:
            raise RecipeError(_message(file, wanted, [methods[index] for index in free]))
        indices[index] = number
    return indices


def _message(file: InlayFile, wanted: Method, free: list[Method]) -> str:
    for method in free:
        if method.exported() == wanted:
            return (
                f"start: {file.path} holds {wanted!r}, without what {method!r} is trained "
                f"through, which is dropped in files; write the method as {wanted!r}"
            )
    similar = [method for method in free if type(method) is type(wanted)]
    here = f"; the recipe has {similar[0]!r}" if similar else ""
    return (
        f"start: {file.path} holds {wanted!r}, which the recipe's method lacks{here}; give a "
        "method that has all of the file's methods as they are, and others if you like"
    )
