"""README.md and examples/: what they show runs."""

import re
import runpy
import subprocess
from pathlib import Path

import pytest
import yaml

from inlay import hub
from inlay.training.recipes.recipe import Recipe

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
    recipe = Recipe.load(path)
    assert recipe.task == yaml.safe_load(path.read_text())["task"]


def test_the_makefile_names_its_targets():
    process = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True)
    for target in ("demo", "test", "test-portable", "check", "bench", "lint", "format", "clean"):
        assert f"make {target} " in process.stdout
