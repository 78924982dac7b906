"""`inlay plan`: what a recipe will take is measured on one step, and nothing is written."""

import json

import pytest

from inlay.training import planning
from inlay.training.loop.step import Stepper


@pytest.fixture
def recipe(base, inlay, tmp_path):
    rows = [
        {"text": f"a {'bright' if n % 2 else 'dull'} film", "label": "yes" if n % 2 else "no"}
        for n in range(16)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(
        f"base: {base}\ntask: {{kind: classify}}\nmethod: LoRA(rank=2)\nout: out\n"
        "data:\n  train: {source: rows.jsonl}\ntraining: {epochs: 2, batch_size: 4}\n"
    )
    return "recipe.yaml"


def test_several_methods_side_by_side(inlay, recipe, tmp_path):
    run = inlay(
        "plan", recipe, "--method", "LoRA(rank=2)", "--method", "Prompt(length=3)",
        "--method", "Compacter(divisions=7)",
    )  # fmt: skip
    assert run.code == 0, run.err
    lines = [line.split() for line in run.out.splitlines() if line.strip()]
    assert [line[0] for line in lines[2:]] == [
        "LoRA(rank=2)", "Prompt(length=3)", "Compacter(divisions=7)",
    ]  # fmt: skip
    assert "Compacter(divisions=7): " in run.err  # why it does not fit
    assert not (tmp_path / "out").exists()


def test_the_numbers_are_those_of_training(inlay, recipe, tmp_path):
    run = inlay("plan", recipe, "--json")
    (numbers,) = json.loads(run.out)
    assert numbers["fits"] is True and numbers["steps"] == 4 and numbers["total_steps"] == 8
    assert numbers["peak"] == numbers["base"] + numbers["optimizer"] + numbers["step"]
    assert inlay("train", recipe).code == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert numbers["parameters"] == result["parameters"]
    size = (tmp_path / "out" / "default.safetensors").stat().st_size
    assert numbers["file"] <= size <= numbers["file"] + 20_000  # the header


def test_a_long_run_says_it_in_its_first_lines(inlay, recipe):
    run = inlay("train", recipe, "--steps", "50", "--set", "training.epochs=null")
    assert run.code == 0, run.err
    assert "at the peak on cpu, about " in run.err
    assert "at the peak" not in inlay("train", recipe, "--steps", "2", "--out", "short").err


def test_what_does_not_fit_is_told_with_what_would(inlay, recipe, monkeypatch):
    def full(*args):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "backward", full)
        run = inlay("plan", recipe)
    assert run.code == 1
    assert "LoRA(rank=2) does not fit; try batch_size 2 with accumulate 2" in run.err
    monkeypatch.setattr(planning, "free_memory", lambda device: 1000)
    assert "does not fit; try batch_size 1 with accumulate 4" in inlay("plan", recipe).err


def test_refusals(inlay, recipe):
    assert "training.base_lr out" in inlay("plan", recipe, "--set", "training.base_lr=1e-4").error
    assert "no method is called" in inlay("plan", recipe, "--set", "method=Lora2").error
