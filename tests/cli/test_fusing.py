"""`inlay fuse`: both stages from a recipe, and what `inlay inspect` reads out of their file."""

import json
from pathlib import Path

import pytest

from inlay.training import FuseRecipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "fuse" / "recipe.yaml"

TEXT = """
base: {base}
method: Pfeiffer(bottleneck=3, std=0.3)
adapters:
  films:
    task: {{kind: classify}}
    data: {{train: {{source: reviews.jsonl}}, dev: {{source: reviews.jsonl}}}}
    training: {{steps: 2, batch_size: 4}}
  others:
    task: {{kind: classify}}
    data: {{train: {{source: reviews.jsonl}}}}
    training: {{steps: 2, batch_size: 4, lr: 0.01}}
task: {{kind: classify}}
data: {{train: {{source: reviews.jsonl}}, dev: {{source: reviews.jsonl}}}}
training: {{steps: 2, batch_size: 4}}
out: out
"""


@pytest.fixture
def plan(inlay, encoder, reviews, tmp_path):
    (tmp_path / "recipe.yaml").write_text(TEXT.format(base=encoder))
    return "recipe.yaml"


def test_both_stages_and_a_second_start(inlay, plan, encoder, tmp_path):
    run = inlay("fuse", plan, "--prune", "1", "--out", "run")
    assert run.code == 0, run.err
    for line in ("adapter 1 of 2, films", "adapter 2 of 2, others", "the fusion of films, others"):
        assert line in run.err.splitlines()
    assert "reading the fusion out on dev" in run.err or "untouched" in run.err
    for part in ("listens", "untrained", "pruned to 1", "saved in run/default-keep1.safetensors"):
        assert part in run.out, run.out
    assert "next: inlay inspect run/default.safetensors shows" in run.out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["pruned"]["path"] == "run/default-keep1.safetensors"
    again = inlay("fuse", plan, "--out", "run")
    assert "adapter 1 of 2, films: trained before, in run/adapters/films/films.safetensors" in (
        again.err.splitlines()
    )
    for file in ("run/default.safetensors", "run/default-keep1.safetensors"):
        scores = json.loads(inlay("eval", file, "--json").out)
        part = result["pruned"] if "keep" in file else result
        assert scores["accuracy"] == part["dev"]["accuracy"]


def test_a_recipe_is_printed_back_and_refused(inlay, plan):
    run = inlay("fuse", plan, "--print-recipe", "--prune", "1", "--prune-per", "layer")
    assert "prune: 1" in run.out and "prune_per: layer" in run.out
    words = ("--set", "adapters.films.training.step=3", "--set", "adapters.others.data.dev=x")
    error = inlay("fuse", plan, *words).error
    assert "has 2 faults" in error
    assert "adapters.films.training.step: there is no such field; did you mean 'steps'?" in error
    assert "adapters.others.data.dev: write its fields" in error
    assert "prune keeps fewer" in inlay("fuse", plan, "--prune", "2").error
    assert "cannot read none.safetensors" in (
        inlay("fuse", plan, "--set", "adapters.films=none.safetensors").error
    )


def test_bad_rows_are_left_out_of_both_stages(inlay, plan, reviews):
    reviews.write_text(reviews.read_text() + '{"text": "", "label": "yes"}\n')
    assert "text is empty" in inlay("fuse", plan).error
    run = inlay("fuse", plan, "--skip-bad-rows")
    assert run.code == 0, run.err
    assert run.err.count("train: 1 row is left out") == 3


def test_the_recipe_of_the_help_page_is_one():
    from inlay.training.fusion import recipe
    from inlay.training.recipes import yaml

    text = recipe.__doc__.split("\n\n")[1]
    assert FuseRecipe.model_validate(yaml.read(text, "the docstring")).trained().keys() == {
        "questions"
    }


def test_the_example_is_a_recipe():
    recipe = FuseRecipe.load(EXAMPLE)
    assert list(recipe.trained()) == ["questions", "reviews", "pairs"] and recipe.prune == 2


# ------------------------------------------------------------------- what is read out of it


@pytest.fixture
def fused(inlay, plan, tmp_path):
    run = inlay("fuse", plan)
    assert run.code == 0, run.err
    return tmp_path / "out" / "default.safetensors"


def test_inspect_shows_what_each_layer_listens_to(inlay, fused, tmp_path):
    words = ("--text", "the cat", "--text", "a good old film")
    run = inlay("inspect", fused, *words, "--json", "a.json", "--html", "a.html")
    assert run.code == 0, run.err
    assert "Attention over adapters, in the encoder (mean over 2 texts)" in run.out
    assert "Attention over adapters, in the encoder, by text (mean over layers)" in run.out
    lines = [line.split() for line in run.out.splitlines()]
    by_layer = {
        line[0]: [*map(float, line[1:])] for line in lines if len(line) == 3 and "." in line[2]
    }
    assert set("012") <= by_layer.keys()
    assert all(sum(by_layer[layer]) == pytest.approx(1, abs=2e-3) for layer in "012")
    by_text = [list(map(float, line[1:3])) for line in lines if line[3:4] in (["the"], ["a"])]
    report = json.loads((tmp_path / "a.json").read_text())
    values = [entry["values"] for entry in report["readings"]]
    for number, pair in enumerate(by_text):
        expected = [sum(place[number][n] for place in values) / 3 for n in range(2)]
        assert pair == pytest.approx(expected, abs=6e-4)
    assert len(by_text) == 2
    assert [entry["layer"] for entry in report["readings"]] == [0, 1, 2]
    for entry in report["readings"]:
        assert entry["names"] == ["films", "others"] and len(entry["values"]) == 2
        assert by_layer[str(entry["layer"])] == pytest.approx(entry["mean"], abs=6e-4)
    page = (tmp_path / "a.html").read_text()
    assert "http" not in page and "url(" not in page
    for part in (">layer</text>", ">adapter</text>", ">text</text>", ">films</text>"):
        assert part in page
    assert "layer 0, adapter films: " in page and "layer 2, text 2: " in page
    assert "the cat" in page and page.count("<svg role") == 3


def test_inspect_shows_gates_by_layer_and_text(inlay, tmp_path, encoder, reviews):
    (tmp_path / "r.yaml").write_text(
        f"base: {encoder}\nmethod: UniPELT(rank=2, length=2, bottleneck=3, mlp=4)\n"
        "task: {kind: classify}\ndata: {train: {source: reviews.jsonl}}\n"
        "training: {steps: 2, batch_size: 4}\nout: uni\n"
    )
    assert inlay("train", "r.yaml").code == 0
    run = inlay("inspect", "uni/default.safetensors", "--data", reviews, "--limit", "3")
    assert run.code == 0, run.err
    assert "Gate, in the encoder (mean over 3 texts)" in run.out
    for column in ("LoRA at attn.q", "LoRA at attn.v", "Prefix at attn.kv", "Pfeiffer at block"):
        assert column in run.out
    assert "Attention on the prefix, in the encoder's self-attention" in run.out


def test_a_gate_that_reads_nothing_says_so(inlay, tmp_path, base, rows):
    (tmp_path / "r.yaml").write_text(
        f"base: {base}\nmethod: Gate(inner=LoRA(rank=2), start=0.5)\ntask: {{kind: generate}}\n"
        "data: {train: {source: rows.jsonl}}\ntraining: {steps: 1, lr: 1.0e-9}\nout: g\n"
    )
    assert inlay("train", "r.yaml").code == 0
    run = inlay("inspect", "g/default.safetensors", "--html", "g.html")
    assert "0.500" in run.out and "It is the same for every text." in run.out
    assert "It is the same for every text." in (tmp_path / "g.html").read_text()


# ------------------------------------------------------------------------ leaving layers out


def test_layers_are_left_out_without_training_anew(inlay, tmp_path, encoder, reviews):
    (tmp_path / "r.yaml").write_text(
        f"base: {encoder}\nmethod: AdapterDrop(inner=Pfeiffer(bottleneck=3, std=0.5))\n"
        "task: {kind: classify}\ndata: {train: {source: reviews.jsonl}}\n"
        "training: {steps: 4, batch_size: 4, lr: 0.1}\nout: drop\n"
    )
    run = inlay("train", "r.yaml")
    assert run.code == 0, run.err
    file = "drop/default.safetensors"
    for words in (("--drop-layers", "2"), ()):
        run = inlay("eval", file, *words, "--json", "--data", reviews)
        assert run.code == 0 and json.loads(run.out)["rows"] == 12, run.err
    answers = {}
    for k in (0, 2):
        run = inlay("predict", file, reviews, "--drop-layers", k)
        assert run.code == 0, run.err
        answers[k] = [json.loads(line)["probability"] for line in run.out.splitlines()]
    import inlay as library

    opened = library.open(file, device="cpu", drop_layers=2)
    assert {placed.site.layer for placed in opened.handle.placed} == {2, None}
    expected = [r["probability"] for r in opened.predict([{"text": f"the film was {w}"} for w in ("good", "bad", "fine", "dull")] * 3)]  # fmt: skip
    assert answers[2] == pytest.approx(expected, abs=1e-5)
    assert answers[0] != pytest.approx(answers[2], abs=1e-5)
    assert "has none left; drop fewer than 3" in inlay("eval", file, "--drop-layers", "3").error
    assert "give its FILE" in (
        inlay("eval", encoder, "--drop-layers", "1", "--data", reviews, "--task", "classify").error
    )


def test_generate_leaves_layers_out_too(inlay, trained, base):
    run = inlay("generate", trained, "the cat", "--drop-layers", "2")
    assert run.code == 0, run.err
    assert "give its FILE" in inlay("generate", base, "the cat", "--drop-layers", "2").error
