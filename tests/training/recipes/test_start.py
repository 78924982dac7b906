"""Training goes on from a saved inlay, and a file says what it is for."""

import json

import pytest
import torch

from inlay.errors import BaseError, RecipeError, TrainingError
from inlay.files.format import read
from inlay.training import Recipe, run
from tests.training.recipes.test_recipe import TEXT, places  # noqa: F401  # a fixture


@pytest.fixture
def make(places, tmp_path):  # noqa: F811
    """`make("name", method, steps=…)` runs a recipe; returns its outcome."""

    def make(name, method, **changes):
        text = TEXT.replace("BASE", str(places / "base")).replace("OUT", str(tmp_path / name))
        for part in ("train", "dev"):
            text = text.replace(part.upper(), str(places / f"{part}.jsonl"))
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        fields = {"training.steps": "2", "data.test": "null", **changes}
        return run(Recipe.load(path, {"method": method, **fields}))

    return make


def test_training_goes_on_where_it_ended(make):
    first = make("first", "LoRA(rank=2)")
    tiny_steps = {"training.lr": "1e-12", "start": str(first.path)}
    second = make("second", "LoRA(rank=2)", **tiny_steps)
    a, b = read(first.path).tensors, read(second.path).tensors
    assert all(torch.allclose(a[name], b[name], atol=1e-9) for name in a)
    assert second.untouched == first.dev, "the score before training is that of the start"
    assert first.untouched != first.dev or first.dev["accuracy"] in (0, 0.5, 1)


def test_methods_of_the_file_and_new_ones(make):
    first = make("first", "LoRA(rank=2)")
    both = make(
        "both",
        "Prefix(length=2, mlp=None) + LoRA(rank=2)",
        **{"training.lr": "1e-12", "start": str(first.path)},
    )
    old = {k.replace("/0/", "/1/"): t for k, t in read(first.path).tensors.items()}
    new = {k: t for k, t in read(both.path).tensors.items() if "lora" in k}
    assert new.keys() <= {k.replace("/1/lora", "/lora") for k in old} | old.keys() or len(
        new
    ) == len(old)
    for (_, a), (_, b) in zip(sorted(old.items()), sorted(new.items()), strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_other_methods_are_refused(make):
    first = make("first", "LoRA(rank=2) + BitFit()")
    start = {"start": str(first.path)}
    with pytest.raises(RecipeError, match=r"holds BitFit\(\), which the recipe's method lacks"):
        make("second", "LoRA(rank=2)", **start)
    with pytest.raises(RecipeError, match=r"holds LoRA\(rank=2\).*the recipe has LoRA\(rank=4\)"):
        make("third", "LoRA(rank=4) + BitFit()", **start)
    prefix = make("prefix", "Prefix(length=2, mlp=8)")
    with pytest.raises(
        RecipeError, match=r"holds Prefix\(length=2, mlp=None.*dropped in files; write"
    ):
        make("fourth", "Prefix(length=2, mlp=8)", start=str(prefix.path))
    with pytest.raises(RecipeError, match="start is an inlay to train on from; give its method"):
        Recipe.load(
            None,
            {
                "base": "b",
                "start": "x",
                "training.base_lr": "1e-3",
                "out": "o",
                "task.kind": "generate",
                "data.train.source": "t",
            },
        )


def test_a_start_of_another_base_is_refused(make, places, tmp_path):  # noqa: F811
    import transformers as hf

    first = make("first", "LoRA(rank=2)")
    config = hf.AutoConfig.from_pretrained(places / "base")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        hf.LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    hf.AutoTokenizer.from_pretrained(places / "base").save_pretrained(tmp_path / "other")
    with pytest.raises(BaseError, match="another base"):
        make("second", "LoRA(rank=2)", base=str(tmp_path / "other"), start=str(first.path))


def test_a_start_is_part_of_the_identity(make):
    first, other = make("first", "LoRA(rank=2)"), make("other", "LoRA(rank=2)", seed="1")
    again = {"start": str(first.path)}
    done = make("run", "LoRA(rank=2)", **again)
    assert make("run", "LoRA(rank=2)", **again).dev == done.dev  # resumes
    with pytest.raises(TrainingError, match="is of another run: start was"):
        make("run", "LoRA(rank=2)", start=str(other.path))
    with pytest.raises(TrainingError, match="is of another run: start was"):
        make("run", "LoRA(rank=2)")


def test_a_head_keeps_its_labels_and_their_order(make, places, tmp_path):  # noqa: F811
    head = {"task.by": '{"kind": "trained_head", "labels": ["yes", "no"]}', "task.template": "null"}
    first = make("first", "LoRA(rank=2)", **head)
    free = {"task.by": '{"kind": "trained_head"}', "task.template": "null"}
    second = make(
        "second", "LoRA(rank=2)", start=str(first.path), **{**free, "training.lr": "1e-12"}
    )
    assert read(second.path).usage.task["by"]["labels"] == ["yes", "no"]
    assert second.untouched == first.dev


def test_what_is_trained_and_what_is_saved(make, capsys):
    outcome = make("first", "Prefix(length=2, mlp=8)")
    assert outcome.saved_parameters == sum(t.numel() for t in read(outcome.path).tensors.values())
    assert outcome.saved_parameters < outcome.parameters
    result = json.loads((outcome.path.parent / "result.json").read_text())
    assert result["saved_parameters"] == outcome.saved_parameters
    line = f"{outcome.parameters:,} parameters are trained"
    assert line in capsys.readouterr().err
    outcome = make("second", "LoRA(rank=2)")
    assert outcome.saved_parameters == outcome.parameters
    assert "are saved" not in capsys.readouterr().err
    outcome = make("third", "DiffPruning(keep=0.25, at='attn.q')")  # it says so before it prunes
    values = [t for n, t in read(outcome.path).tensors.items() if n.endswith("values")]
    assert outcome.saved_parameters == sum(t.numel() for t in values)
    assert f", {outcome.saved_parameters:,} are saved" in capsys.readouterr().err


def test_the_calibration_is_in_the_file_the_results_and_the_output(make, capsys):
    outcome = make("first", "LoRA(rank=2)")
    calibration = outcome.calibration
    assert read(outcome.path).usage.calibration["temperature"] == calibration.temperature
    result = json.loads((outcome.path.parent / "result.json").read_text())
    assert result["calibration"]["error_before"] == calibration.error_before
    assert "calibrated on dev: temperature" in capsys.readouterr().err
    assert (
        make(
            "second", "LoRA(rank=2)", **{"data.dev": "null", "training.eval_every": "null"}
        ).calibration
        is None
    )
    written = make("third", "LoRA(rank=2)", task='{"kind": "generate"}')
    assert written.calibration is None
    assert read(written.path).usage.task["task"] == "generate"
