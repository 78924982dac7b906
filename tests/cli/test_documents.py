"""README.md, docs/ and examples/: what they show runs, and what is generated is up to date."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from inlay import hub
from inlay.training.recipes.recipe import Recipe
from inlay_cli import docs

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def block(language):
    return re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)[1]


@pytest.fixture
def tiny(monkeypatch, tmp_path, base):
    """`load_base("smollm2")` gives a tiny model, and files go into an empty folder."""
    real = hub.load_base
    monkeypatch.setattr(hub, "load_base", lambda name, **more: real(base, **more))
    monkeypatch.chdir(tmp_path)


def test_the_python_of_the_readme_runs(tiny, tmp_path, capsys):
    exec(compile(block("python"), "README.md", "exec"), {})
    assert (tmp_path / "shop.safetensors").exists()
    assert capsys.readouterr().out.startswith("[")


def test_the_recipe_of_the_readme_is_one(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(block("yaml"))
    assert Recipe.load(path).training.minutes == 5


def test_the_commands_of_the_readme_exist(inlay):
    commands = re.findall(r"^inlay (\w+)", README, re.MULTILINE)
    assert len(commands) >= 7
    for command in commands:
        assert inlay(command, "--help").code == 0


def test_links_of_the_documents_lead_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("adr/*.md"), *ROOT.glob("*/README.md")]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("name", ["own_loop.py", "two_shops.py"])
def test_examples_run(tiny, capsys, name):
    runpy.run_path(str(ROOT / "examples" / name))
    assert capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.stem)
def test_example_recipes_are_recipes(path):
    made = Recipe.load(path)
    assert made.task == yaml.safe_load(path.read_text())["task"]


def test_generated_documents_are_up_to_date(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["docs", "--check"])
    assert docs.main() == 0, capsys.readouterr().out


def test_a_stale_document_is_noticed_and_mended(monkeypatch, tmp_path, capsys):
    (tmp_path / "README.md").write_text("<!-- methods -->\nold\n<!-- /methods -->\n"
                                        "<!-- bench -->\n<!-- /bench -->\n")  # fmt: skip
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["docs", "--check"])
    assert docs.main() == 1
    assert "make docs" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["docs"])
    assert docs.main() == 0
    text = (tmp_path / "README.md").read_text()
    assert "old" not in text
    assert "`LoRA`" in text
    assert "make bench" in text
    monkeypatch.setattr(sys, "argv", ["docs", "--check"])
    assert docs.main() == 0


def test_a_benchmark_becomes_a_table():
    machine = {"cores": 2, "device": "a CPU", "torch": "1", "transformers": "2", "peft": "3"}
    row = {"what": "a step", "beside": "peft", "unit": "s", "ours": 1.23456, "other": 2.0}
    row |= {"ratio": 0.61728, "at_most": 0.7, "at_least": None}
    results = {"runs": ["today"], "quick": False, "machine": machine, "rows": [row]}
    made = docs.measured(results)
    assert "| a step | 1.235 | peft | 2 | s | 0.62 | ≤ 0.70 |" in made
    assert "2 cores (a CPU) with torch 1, transformers 2, peft 3 on today." in made
    made = docs.measured(results | {"runs": ["yesterday", "today"]})
    assert "peft 3 in 2 runs, the last on today." in made


def test_the_cells_of_the_tasks_become_a_table(tmp_path):
    assert "Not measured" in docs.tasks_page(tmp_path)
    refused = {"refused": "it cannot write"}
    bare = {"metric": "f1", "rows": 277, "commonest": 0.25}
    cells = {
        "one/untouched": {**bare, "score": 0.5, "how": "as it is"},
        "one/LoRA": {"metric": "f1", "score": 0.75, "steps": 12},
        "two/untouched": {**bare, **refused},
        "two/LoRA": refused,
    }
    stored = {"set": "words", "seconds": 60, "seed": 0, "batch_size": 8, "test_rows": 300}
    stored |= {"tasks": {"one": {}, "two": {}, "three": {}}, "methods": {"LoRA": {}}}
    stored |= {"machine": {"device": "a CPU", "torch": "1", "transformers": "2"}, "cells": cells}
    (tmp_path / "words.json").write_text(json.dumps(stored))
    made = docs.tasks_page(tmp_path)
    assert "| words | one | f1 | 277 | 0.250 | 0.500 [1] | 0.750 (12) |" in made
    assert "| words | two | f1 | 277 | 0.250 | – [2] | – [2] |" in made
    assert "| words | three |  |  |  |  |  |" in made  # not measured yet
    assert "1. as it is" in made and "2. it cannot write" in made


def test_the_makefile_names_its_targets():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True)
    for target in ("demo", "test", "test-portable", "check", "bench", "lint", "format", "clean"):
        assert f"make {target} " in done.stdout
