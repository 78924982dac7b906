"""The results of both stages of a fusion."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inlay.fusing import AdapterWeights
from inlay.training.fusion.recipe import FuseRecipe
from inlay.training.recipes.outcome import Outcome

Scores = dict[str, float] | None
"""By metric; None where there is no such data."""


@dataclass(frozen=True)
class AdapterScores:
    """What an adapter scored on its own task, after its training; metric: the primary one."""

    metric: str
    dev: Scores
    test: Scores


@dataclass(frozen=True)
class AdapterResult:
    """One adapter of a fusion.

    name: what it is called.
    path: its file.
    trained: whether this start of the run trained it.
    scores: None for one that came as a file.
    """

    name: str
    path: Path
    trained: bool
    scores: AdapterScores | None


@dataclass(frozen=True)
class PrunedResult:
    """The fusion with fewer adapters.

    path: its file.
    adapters: layer -> the adapters that it keeps there, by the number of the layer as a text.
    dev, test: its scores.
    """

    path: Path
    adapters: dict[str, list[str]]
    dev: Scores
    test: Scores


@dataclass(frozen=True)
class FuseResult:
    """What a recipe of a fusion led to.

    recipe: as it was run.
    adapters: in their order.
    fusion: of the second stage.
    measured: on which rows `weights` was measured, "dev" or "train".
    weights: how much the fusion listens to each adapter in each place, on average.
    pruned: None where nothing was pruned.
    """

    recipe: FuseRecipe
    adapters: tuple[AdapterResult, ...]
    fusion: Outcome
    measured: str
    weights: AdapterWeights
    pruned: PrunedResult | None

    @property
    def means(self) -> dict[str, float]:
        """How much the fusion listens to each adapter, on average over the places that have it."""
        names = [adapter.name for adapter in self.adapters]
        found = {n: [place[n] for place in self.weights.values() if n in place] for n in names}
        return {n: sum(values) / max(len(values), 1) for n, values in found.items()}

    def to_json(self) -> dict[str, Any]:
        """The result as JSON: that of the second stage, and what there is besides."""
        adapters = [{**asdict(adapter), "path": str(adapter.path)} for adapter in self.adapters]
        pruned = None
        if self.pruned is not None:
            pruned = {**asdict(self.pruned), "path": str(self.pruned.path)}
        return {
            **self.fusion.to_json(),
            "fuse": self.recipe.model_dump(mode="json"),
            "adapters": adapters,
            "measured": self.measured,
            "weights": self.weights,
            "pruned": pruned,
        }
