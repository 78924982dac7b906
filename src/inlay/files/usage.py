"""Usage: what an inlay's file says of how it is used, so that nothing else is needed to use it.

It stands in the file's header as JSON, under `usage`. Files of earlier versions, and inlays
that were saved in Python without it, have none.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inlay.errors import FileError

KEY = "usage"
"""Its name in the header."""


@dataclass(frozen=True)
class Usage:
    """How an inlay is used.

    base: the base, as `load_base` takes it; a folder beside the file where `beside` is set.
    beside: whether the base is a folder next to the inlay's file.
    dtype: of the base's weights; None for that of its files.
    quantize: how the base's matrices were quantised; None where they were not.
    task: what it does, as `Task.describe` writes it, with its labels and template.
    columns: the name of a field that the task reads -> the column that held it in training, or
        the columns that it was gathered from.
    templates: the same of fields that a template wrote.
    separator: what separated the items of a list that was written as one text.
    chat_template: how the tokenizer writes chats, where the task chats.
    calibration: the fields of a `Calibration`; None where none was fitted.
    origin: the file or module of a task that is not inlay's own.
    """

    base: str
    task: dict[str, Any]
    beside: bool = False
    dtype: str | None = None
    quantize: str | None = None
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    separator: str | None = None
    chat_template: str | None = None
    calibration: dict[str, float] | None = None
    origin: str = ""

    def to_header(self) -> dict[str, str]:
        """The entry for a file's header."""
        return {KEY: json.dumps(dataclasses.asdict(self), sort_keys=True)}

    @property
    def temperature(self) -> float:
        """What the task's scores are divided by."""
        return 1.0 if self.calibration is None else float(self.calibration["temperature"])

    def base_path(self, path: Path) -> str:
        """The base of the file `path`."""
        return str(path.parent / self.base) if self.beside else self.base


def usage_of(path: Path, header: Mapping[str, str]) -> Usage | None:
    """What a file's header says of its use; None where it says nothing.

    Raises FileError where that cannot be read.
    """
    text = header.get(KEY)
    if text is None:
        return None
    known = {entry.name for entry in dataclasses.fields(Usage)}
    try:
        stored = json.loads(text)
        usage = Usage(**{name: value for name, value in stored.items() if name in known})
        valid = isinstance(usage.base, str) and isinstance(usage.task, dict)
        valid = valid and isinstance(usage.origin, str)
        if not valid or not 0 < usage.temperature < float("inf"):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError):
        raise FileError(f"{path}: what it says of its base and task cannot be read") from None
    return usage
