"""A budget in a recipe sizes its method, and the run's own recipe says which size that was."""

from __future__ import annotations

from typing import Any

import pytest

from inlay.errors import RecipeError, SpecError
from inlay.training import Recipe
from tests.training.recipes.test_recipe import places  # noqa: F401  # a fixture
from tests.training.recipes.test_start import make  # noqa: F401  # a fixture


def test_the_method_is_sized(make: Any) -> None:  # noqa: F811
    outcome = make("sized", "LoRA(alpha=4)", budget="1k")
    recipe = Recipe.load(outcome.path.with_name("recipe.yaml"))
    assert recipe.budget is None and recipe.method is not None
    method = recipe.make_spec().methods[0]
    assert (method.alpha, method.rank) == (4, method.rank) and method.rank != 8
    assert method_size(outcome, recipe) <= 1_000


def method_size(outcome: Any, recipe: Recipe) -> int:
    """How many parameters of the file are LoRA's, without the trained head's."""
    from inlay.files.format import read

    tensors = read(outcome.path).tensors
    return sum(t.numel() for name, t in tensors.items() if "/lora/" in name)


def test_refusals(make: Any) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match="a budget sizes one method, and here are 2"):
        make("two", "LoRA() + BitFit()", budget="1k")
    with pytest.raises(SpecError, match="a budget is a number of parameters"):
        make("odd", "LoRA()", budget="much")
