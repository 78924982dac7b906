"""Stage: the training of one adapter, which is left out where it was done before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inlay.errors import TrainingError
from inlay.files.atomic import write_whole
from inlay.training.fusion.results import AdapterScores
from inlay.training.recipes.recipe import Recipe

RECORD = "stage.json"
"""What says that a stage is done, and what it did, in its folder."""

PLACES = {"out", "name"}
"""Fields of a recipe that change no number."""


@dataclass(frozen=True)
class Stage:
    """The training of one adapter.

    recipe: that trains it, into a folder of its own under the adapter's name.
    """

    recipe: Recipe

    @property
    def folder(self) -> Path:
        """Where everything of it is."""
        return Path(self.recipe.out)

    @property
    def path(self) -> Path:
        """The file of the adapter."""
        return self.folder / f"{self.recipe.name}.safetensors"

    def scores(self) -> AdapterScores | None:
        """The scores of an earlier start that trained it to its end; None where none did.

        Raises TrainingError where that one trained something else.
        """
        record = self.folder / RECORD
        if not (record.is_file() and self.path.is_file()):
            return None
        try:
            stored = json.loads(record.read_text("utf-8"))
            before, scores = dict(stored["run"]), AdapterScores(**stored["scores"])
        except (ValueError, TypeError, KeyError):
            return None  # it says nothing, so it is trained again from its checkpoint
        now = self._facts()
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                raise TrainingError(
                    f"{self.path} is of another run: {name} was {before.get(name)!r:.80} and is "
                    f"{now.get(name)!r:.80}; delete {self.folder} to train this adapter anew, or "
                    "start all anew (--fresh, in Python resume=False)"
                )
        return scores

    def finish(self, scores: AdapterScores) -> None:
        """Note that it is done, and its scores."""
        record = {"run": self._facts(), "scores": asdict(scores)}
        write_whole(self.folder / RECORD, json.dumps(record, indent=2).encode())

    def _facts(self) -> dict[str, Any]:
        """Everything that its numbers depend on, by dotted names, as JSON has it."""
        facts = dict(_flat(self.recipe.model_dump(mode="json", exclude=PLACES)))
        for part, source in self.recipe.data.parts().items():
            if Path(source.source).is_file():
                rows = Path(source.source).read_bytes()
                facts[f"data.{part} (its rows)"] = hashlib.sha256(rows).hexdigest()[:16]
        return facts


def _flat(fields: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, by dotted names."""
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
