"""cross_validate: train a recipe once a fold, and see how its scores spread."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console

from inlay.errors import RecipeError
from inlay.files.atomic import write_whole
from inlay.training.loop.launch import processes
from inlay.training.recipes.recipe import Recipe, folder_of
from inlay.training.recipes.run import run

NAME = "folds.json"


@dataclass(frozen=True)
class Validated:
    """What cross-validation found out.

    path: the file that says it too. metric: the task's own. scores: of each fold's inlay on the
    rows held out, by metric. mean, sd: over the folds; sd is the sample standard deviation, with
    k − 1.
    """

    path: Path
    metric: str
    scores: list[dict[str, float]]
    mean: dict[str, float]
    sd: dict[str, float]


def cross_validate(
    recipe: Recipe, console: Console | None = None, *, resume: bool = True
) -> Validated:
    """Run every fold of a recipe with `folds`, each in a folder `fold-1`, `fold-2`, … of `out`.

    Each is what `run` makes of the recipe with that `fold`. Rows held out decide nothing in
    training; early stopping and the choice of the best pieces go by `dev`, where there is one.

    Raises RecipeError where the recipe has no folds or names one, and what `run` raises.
    """
    if recipe.folds is None or recipe.fold is not None:
        raise RecipeError("cross-validation takes a recipe with folds, and without fold")
    console = console or Console(stderr=True)
    main, out = processes().is_main_process, folder_of(recipe.out)
    scores: list[dict[str, float]] = []
    metric = ""
    for number in range(1, recipe.folds + 1):
        if main:
            console.print(f"fold {number} of {recipe.folds}", highlight=False)
        one = {"fold": number, "out": str(out / f"fold-{number}")}
        outcome = run(recipe.model_copy(update=one), console, resume=resume)
        assert outcome.test is not None
        scores.append(outcome.test)
        metric = outcome.metric
    columns = {name: [one[name] for one in scores] for name in scores[0]}
    validated = Validated(
        path=out / NAME,
        metric=metric,
        scores=scores,
        mean={name: mean(values) for name, values in columns.items()},
        sd={name: stdev(values) for name, values in columns.items()},
    )
    if main:
        told = {"metric": metric, "folds": scores, "mean": validated.mean, "sd": validated.sd}
        facts = {"recipe": recipe.model_dump(mode="json"), **told}
        write_whole(validated.path, json.dumps(facts, indent=2).encode())
    return validated
