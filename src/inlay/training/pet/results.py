"""What pattern-exploiting training finds out: of patterns, of their models, of the classifier."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from inlay.training.loop.results import Result
from inlay.training.pet.recipe import Pet

Scores = dict[str, float] | None
"""Metrics on `test`; None where there is none."""


@dataclass(frozen=True)
class Asked:
    """One pattern on the untouched base. train: its accuracy there, None without labelled rows.

    weight: its models' in the ensemble.
    """

    pattern: str
    weight: float
    train: float | None
    test: Scores


@dataclass(frozen=True)
class Member:
    """One trained model. pattern, seed: which, both from 1 on. rows: how many it learned from."""

    pattern: int
    seed: int
    rows: int
    test: Scores


@dataclass(frozen=True)
class Generation:
    """All models that learned at a time, and what they say together."""

    members: tuple[Member, ...]
    ensemble: Scores


@dataclass(frozen=True)
class Petted:
    """What pattern-exploiting training led to.

    path: the classifier's file, None where nothing was set in. base: the folder of the base, where
    it learned. metric: the task's own. untouched: the patterns before training. test: what the
    classifier scores. training: how that went.
    """

    recipe: Pet
    path: Path | None
    base: Path | None
    metric: str
    untouched: tuple[Asked, ...]
    generations: tuple[Generation, ...]
    test: Scores
    training: Result

    @property
    def spread(self) -> dict[str, dict[str, float]]:
        """Of the metric over patterns (`untouched`) and over the last models (`trained`)."""
        groups = {
            "untouched": [one.test for one in self.untouched],
            "trained": [one.test for one in self.generations[-1].members],
        }
        found = {}
        for name, group in groups.items():
            values = [scored[self.metric] for scored in group if scored is not None]
            if values:
                sd = stdev(values) if len(values) > 1 else 0.0
                found[name] = {
                    "mean": mean(values), "sd": sd, "least": min(values), "most": max(values)
                }  # fmt: skip
        return found

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "path": None if self.path is None else str(self.path),
            "base": None if self.base is None else str(self.base),
            "metric": self.metric,
            "untouched": [asdict(one) for one in self.untouched],
            "generations": [asdict(one) for one in self.generations],
            "spread": self.spread,
            "test": self.test,
            "training": asdict(self.training),
        }
