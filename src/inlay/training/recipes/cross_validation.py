"""cross_validate: train a recipe once per fold, and report how its scores vary."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console

from inlay.errors import RecipeError
from inlay.files.atomic import write_whole
from inlay.training.loop.launch import processes
from inlay.training.loop.progress import print_line
from inlay.training.recipes.recipe import Recipe, output_folder
from inlay.training.recipes.run import run

NAME = "folds.json"


@dataclass(frozen=True)
class CrossValidation:
    """The scores of a cross-validation.

    path: the file that holds them too.
    metric: the task's primary metric.
    scores: of each fold's inlay on its held-out rows, by metric.
    mean: over the folds, by metric.
    sd: the sample standard deviation over the folds (divided by k − 1), by metric.
    """

    path: Path
    metric: str
    scores: list[dict[str, float]]
    mean: dict[str, float]
    sd: dict[str, float]


def cross_validate(
    recipe: Recipe, console: Console | None = None, *, resume: bool = True
) -> CrossValidation:
    """Run every fold of a recipe with `folds`, each in a folder `fold-1`, `fold-2`, … of `out`.

    Each is what `run` does with that `fold`. The held-out rows decide nothing in training; early
    stopping and the choice of the best pieces use `dev`, where there is one.

    Args:
        recipe: with `folds`, and without `fold`.
        console: where progress is shown; None for the error stream.
        resume: resume folds from their checkpoints.

    Raises RecipeError where the recipe has no folds or names one, and what `run` raises.
    """
    if recipe.folds is None or recipe.fold is not None:
        raise RecipeError("cross-validation takes a recipe with folds, and without fold")
    console = console or Console(stderr=True)
    main, out = processes().is_main_process, output_folder(recipe.out)
    scores: list[dict[str, float]] = []
    metric = ""
    for fold in range(1, recipe.folds + 1):
        if main:
            print_line(console, f"fold {fold} of {recipe.folds}")
        changes = {"fold": fold, "out": str(out / f"fold-{fold}")}
        outcome = run(recipe.model_copy(update=changes), console, resume=resume)
        assert outcome.test is not None
        scores.append(outcome.test)
        metric = outcome.metric
    columns = {name: [fold_scores[name] for fold_scores in scores] for name in scores[0]}
    result = CrossValidation(
        path=out / NAME,
        metric=metric,
        scores=scores,
        mean={name: mean(values) for name, values in columns.items()},
        sd={name: stdev(values) for name, values in columns.items()},
    )
    if main:
        content = {
            "recipe": recipe.model_dump(mode="json"),
            "metric": metric,
            "folds": scores,
            "mean": result.mean,
            "sd": result.sd,
        }
        write_whole(result.path, json.dumps(content, indent=2).encode())
    processes().wait_for_everyone()  # whoever is told of the file finds it there
    return result
