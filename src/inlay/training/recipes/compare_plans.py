"""plan_methods: what a recipe will take, for its own method or several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from inlay.errors import InlayError, RecipeError
from inlay.training.loop.launch import processes
from inlay.training.planning import Plan
from inlay.training.recipes.reading import open_base
from inlay.training.recipes.recipe import Recipe
from inlay.training.recipes.run import open_run


@dataclass(frozen=True)
class MethodPlan:
    """What a recipe takes with one method.

    method: as it was written. plan: None where it cannot be attached. parameters: how many are
    trained. base_parameters: how many the base has. error: why it cannot be attached.
    """

    method: str
    plan: Plan | None
    parameters: int = 0
    base_parameters: int = 0
    error: str = ""


def plan_methods(
    recipe: Recipe, methods: Sequence[str] = (), console: Console | None = None
) -> list[MethodPlan]:
    """Measure what a recipe will take, with each of several methods.

    methods: written as in a recipe; none takes the recipe's own. A method that does not fit the
    base or the task is an entry with its error.

    Raises RecipeError for a base that would be trained too; and what `run` raises of the base and
    the rows.
    """
    if recipe.training.base_lr is not None or recipe.method is None:
        raise RecipeError("a plan is for pieces on a frozen base; leave training.base_lr out")
    console = console or Console(stderr=True)
    if not processes().is_main_process:
        console = Console(quiet=True)
    opened = open_base(recipe.base, recipe.dtype, console, recipe.quantize)
    plans = []
    for method in methods or (recipe.method,):
        changes = {"method": method, "ensemble": 1, "folds": None, "fold": None}
        try:
            changed = Recipe.model_validate({**recipe.model_dump(), **changes})
            ready = open_run(changed, Console(quiet=True), opened=opened)
        except (InlayError, ValueError) as error:
            if not methods:
                raise
            plans.append(MethodPlan(method, None, error=_sentence(error)))
            continue
        estimate = ready.context.plan(ready.handle)
        plans.append(MethodPlan(method, estimate, ready.parameters, ready.base_parameters))
        ready.handle.detach()
    return plans


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())
