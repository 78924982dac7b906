"""intrinsic_dimension: how few numbers suffice to train a task (Li et al., ICLR 2018).

The recipe is trained with the whole base, and with `Intrinsic` in subspaces of more and more
dimensions. The intrinsic dimension is that of the smallest subspace which reaches 90 % of what the
whole base does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from inlay.errors import RecipeError
from inlay.files.atomic import write_whole
from inlay.methods.intrinsic import Intrinsic
from inlay.training.loop.launch import processes
from inlay.training.loop.progress import print_line
from inlay.training.recipes.recipe import Recipe, output_folder
from inlay.training.recipes.run import run

NAME = "dimensions.json"

DIMENSIONS = (200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)

FULL_LR = 1e-4
"""The learning rate of the whole base, where the recipe has none."""


@dataclass(frozen=True)
class Point:
    """One subspace.

    dimensions: d. score: on `test`, or else on `dev`. steps: of the training.
    """

    dimensions: int
    score: float
    steps: int


@dataclass(frozen=True)
class IntrinsicDimension:
    """What a search found.

    path: the file that holds it too. metric: the task's primary metric. full: the score of the
    whole base. share: which part of that has to be reached. points: in the order of dimensions.
    """

    path: Path
    metric: str
    full: float
    share: float
    points: tuple[Point, ...]

    @property
    def target(self) -> float:
        """The score that has to be reached."""
        return self.share * self.full

    @property
    def dimension(self) -> int | None:
        """The smallest number of dimensions that reaches the target; None where none does."""
        reached = [p.dimensions for p in self.points if p.score >= self.target]
        return min(reached, default=None)


def intrinsic_dimension(
    recipe: Recipe,
    dimensions: Sequence[int] = DIMENSIONS,
    *,
    method: Intrinsic | None = None,
    full: float | None = None,
    share: float = 0.9,
    console: Console | None = None,
    resume: bool = True,
) -> IntrinsicDimension:
    """Train a recipe in the whole base and in subspaces of these dimensions.

    Each run has a folder of its own in `out`. What is finished is kept in the file `NAME` there,
    and not run again by the same call. A trained head that the task reads learns beside z, and is
    not counted.

    Args:
        recipe: with a higher-is-better metric, and `dev` or `test` to score on. Its method is
            replaced; `training.base_lr` is the learning rate of the whole base, and `training.lr`
            that of the subspaces.
        dimensions: the numbers d to try.
        method: the other fields of `Intrinsic`; None for its defaults.
        full: the score of the whole base, where it is known; None trains it.
        share: which part of the score of the whole base has to be reached.
        console: where progress is shown; None for the error stream.
        resume: keep what is finished, and resume from checkpoints.

    Raises RecipeError where there is nothing to score on, or the score of the whole base is not
    above zero; and what `run` raises.
    """
    method = method or Intrinsic()
    sizes = sorted(set(dimensions))
    if not sizes or not 0 < share <= 1:
        raise RecipeError("give at least one number of dimensions, and a share between 0 and 1")
    if recipe.data.dev is None and recipe.data.test is None and recipe.folds is None:
        raise RecipeError("the scores need rows that are not trained on; give data.dev, data.test")
    if recipe.ensemble > 1 or recipe.folds is not None or recipe.start is not None:
        raise RecipeError("a search of dimensions takes a recipe without ensemble, folds and start")
    main = processes().is_main_process
    console = (console or Console(stderr=True)) if main else Console(quiet=True)
    out = output_folder(recipe.out)
    recipe = recipe.model_copy(update={"dtype": recipe.dtype or "float32", "budget": None})
    runs = {d: _subspace(recipe, replace(method, dimensions=d), out) for d in sizes}
    finished = _Finished(out / NAME, resume)
    print_line(console, f"{len(runs)} subspaces, of {sizes[0]:,} to {sizes[-1]:,} dimensions")
    metric = ""
    if full is None:
        result = finished.run(_whole(recipe, out), console)
        full, metric = result["score"], result["metric"]
        print_line(console, f"the whole base: {metric} {full:.4f}")
    if full <= 0:
        raise RecipeError(f"the whole base has the score {full:.4f}, of which no share can be told")
    points = []
    for size, of_size in runs.items():
        result = finished.run(of_size, console)
        points.append(Point(size, result["score"], result["steps"]))
        metric = result["metric"]
        print_line(console, f"{size:,} dimensions: {metric} {result['score']:.4f}")
    found = IntrinsicDimension(out / NAME, metric, full, share, tuple(points))
    if main:
        summary = asdict(found) | {"path": None, "dimension": found.dimension}
        finished.write(summary)
    processes().wait_for_everyone()  # whoever is told of the file finds it there
    return found


def _whole(recipe: Recipe, out: Path) -> Recipe:
    """The recipe that trains the whole base."""
    rate = recipe.training.base_lr or FULL_LR
    training = recipe.training.model_copy(update={"base_lr": rate})
    return recipe.model_copy(
        update={"method": None, "training": training, "out": str(out / "full")}
    )


def _subspace(recipe: Recipe, method: Intrinsic, out: Path) -> Recipe:
    """The recipe that trains one subspace."""
    training = recipe.training.model_copy(update={"base_lr": None})
    folder = str(out / f"dimensions-{method.dimensions}")
    return recipe.model_copy(update={"method": repr(method), "training": training, "out": folder})


class _Finished:
    """The runs that are finished, by their recipes, in a file that is written after each."""

    def __init__(self, path: Path, resume: bool):
        self.path = path
        self.resume = resume
        self.runs: dict[str, dict[str, Any]] = {}
        if resume and path.exists():
            try:
                self.runs = json.loads(path.read_text())["runs"]
            except (OSError, ValueError, KeyError) as error:
                raise RecipeError(
                    f"{path} is damaged ({error!s:.100}); delete it to search anew"
                ) from None

    def run(self, recipe: Recipe, console: Console) -> dict[str, Any]:
        """The metric, score and steps of a recipe, which is run unless it was."""
        key = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
        if key not in self.runs:
            print_line(console, f"running {recipe.method or 'the whole base'}")
            outcome = run(recipe, console, resume=self.resume)
            scores = outcome.test or outcome.dev
            assert scores is not None
            self.runs[key] = {
                "metric": outcome.metric,
                "score": scores[outcome.metric],
                "steps": outcome.training.steps,
            }
            if processes().is_main_process:
                self.write(None)
        return self.runs[key]

    def write(self, summary: dict[str, Any] | None) -> None:
        """Write what there is, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"result": summary, "runs": self.runs}
        write_whole(self.path, json.dumps(content, indent=2).encode())
