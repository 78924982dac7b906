"""`inlay pet`: a recipe is trained and scored, and the recipe among the examples is valid."""

import json
from pathlib import Path

import pytest

from inlay.training import Patterns, PetRecipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "pet"


@pytest.fixture
def recipe(base, inlay, tmp_path):
    rows = [
        {"text": f"a {'bright' if n % 2 else 'dull'} film", "label": "yes" if n % 2 else "no"}
        for n in range(24)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "patterns.yaml").write_text(
        'patterns: ["{text} it was {mask}", "{text} all {mask}"]\n'
        "verbalizer: {no: bad, yes: [good, fine]}\n"
    )
    (tmp_path / "recipe.yaml").write_text(
        f"base: {base}\nmethod: LoRA(rank=2)\npatterns: patterns.yaml\nout: out\n"
        "data:\n  train: {source: rows.jsonl, shots: 2}\n  unlabelled: {source: rows.jsonl}\n"
        "  test: {source: rows.jsonl}\ntraining: {steps: 2, batch_size: 4}\n"
    )
    return "recipe.yaml"


def test_a_run_shows_the_score_of_every_pattern_and_what_to_type_next(
    inlay, recipe, base, tmp_path
):
    run = inlay("pet", recipe, "--set", "generations=2")
    assert run.code == 0, run.err
    for part in ("{text} all {mask}", "untouched", "standard deviation", "generation 2"):
        assert part in run.out, run.out
    assert "generation 2 of 2, pattern 1 of 2: 20 rows" in run.err
    assert f"next: inlay eval {base} out/classifier.safetensors" in run.out
    scores = json.loads((tmp_path / "out" / "result.json").read_text())["test"]
    run = inlay("eval", base, "out/classifier.safetensors", "--json")
    assert json.loads(run.out)["accuracy"] == scores["accuracy"]


def test_a_recipe_is_printed_back_and_refused(inlay, recipe):
    run = inlay("pet", recipe, "--print-recipe", "--set", "seeds=3")
    assert "seeds: 3" in run.out
    assert "pattern" in inlay("pet", recipe, "--set", "pattern=x").error
    Path("patterns.yaml").write_text('patterns: ["{text}"]\nverbalizer: {no: bad, yes: good}\n')
    assert "has no {mask}" in inlay("pet", recipe).error


def test_the_example_is_a_recipe():
    assert len((EXAMPLE / "recipe.yaml").read_text().splitlines()) < 30
    recipe = PetRecipe.load(EXAMPLE / "recipe.yaml")
    patterns = Patterns.load(EXAMPLE.parents[1] / recipe.patterns)
    assert patterns.columns == ("text",)
    recipe.check(len(patterns.tasks()))
