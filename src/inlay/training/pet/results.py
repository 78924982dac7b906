"""The results of pattern-exploiting training: of patterns, of their models, of the classifier."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from inlay.training.loop.results import Result
from inlay.training.pet.recipe import PetRecipe

Scores = dict[str, float] | None
"""Metrics on `test`; None where there is no such data."""


@dataclass(frozen=True)
class PatternResult:
    """One pattern on the untouched base.

    pattern: the template.
    weight: of its models in the ensemble.
    train: its accuracy on the labelled rows; None without them.
    test: its scores.
    """

    pattern: str
    weight: float
    train: float | None
    test: Scores


@dataclass(frozen=True)
class ModelResult:
    """One trained model.

    pattern: the number of its pattern, from 1.
    seed: which of the pattern's models it is, from 1.
    rows: how many it was trained on.
    test: its scores.
    """

    pattern: int
    seed: int
    rows: int
    test: Scores


@dataclass(frozen=True)
class Generation:
    """The models of one generation, and the scores of their ensemble."""

    models: tuple[ModelResult, ...]
    ensemble: Scores


@dataclass(frozen=True)
class PetResult:
    """What pattern-exploiting training led to.

    recipe: as it was run.
    path: the classifier's file; None where nothing was attached.
    base: the folder of the base, where it was trained; else None.
    metric: the task's primary metric.
    untouched: the patterns before training.
    generations: the patterns' models.
    test: the classifier's scores.
    training: how the classifier's training went.
    """

    recipe: PetRecipe
    path: Path | None
    base: Path | None
    metric: str
    untouched: tuple[PatternResult, ...]
    generations: tuple[Generation, ...]
    test: Scores
    training: Result

    @property
    def spread(self) -> dict[str, dict[str, float]]:
        """Statistics of the metric over the patterns (`untouched`) and the last models (`trained`).

        Each has the mean, the sample standard deviation `sd`, the minimum `least` and the maximum
        `most`. Empty without `test`.
        """
        groups = {
            "untouched": [pattern.test for pattern in self.untouched],
            "trained": [model.test for model in self.generations[-1].models],
        }
        statistics = {}
        for name, group in groups.items():
            values = [scores[self.metric] for scores in group if scores is not None]
            if values:
                statistics[name] = {
                    "mean": mean(values),
                    "sd": stdev(values) if len(values) > 1 else 0.0,
                    "least": min(values),
                    "most": max(values),
                }
        return statistics

    def to_json(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "path": None if self.path is None else str(self.path),
            "base": None if self.base is None else str(self.base),
            "metric": self.metric,
            "untouched": [asdict(pattern) for pattern in self.untouched],
            "generations": [asdict(generation) for generation in self.generations],
            "spread": self.spread,
            "test": self.test,
            "training": asdict(self.training),
        }
