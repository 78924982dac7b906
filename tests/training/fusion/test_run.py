"""A fusion by recipe: both stages, what is kept and left out, what is refused, and pruning."""

import json
import shutil

import pytest
import torch

import inlay
from inlay.errors import InlayError, RecipeError, TrainingError
from inlay.files.format import read
from inlay.hub import load_base
from inlay.inspect import token_batches
from inlay.training import FuseRecipe, train_fusion
from inlay.training.fusion import run as run_module
from tests import zoo
from tests.tasks import tiny

TEXT = """
base: {base}
method: Pfeiffer(bottleneck=3, std=0.3)
adapters:
  films:
    task: {{kind: classify}}
    data: {{train: {{source: {films}}}, dev: {{source: {films}, limit: 6}}}}
    training: {{steps: 3, batch_size: 4}}
  colours:
    method: Pfeiffer(bottleneck=2, std=0.3)
    task: {{kind: classify}}
    data: {{train: {{source: {colours}}}}}
    training: {{steps: 2, batch_size: 4}}
  sizes: {sizes}
task: {{kind: classify}}
data:
  train: {{source: {target}}}
  dev: {{source: {target}, limit: 8}}
training: {{steps: 3, batch_size: 4, checkpoint_every: 1}}
out: {out}
"""


def rows(path, labels):
    """Rows of texts with labels; `labels`: word -> label."""
    lines = [
        {"text": f"the film was {word} and {other}", "label": label}
        for word, label in labels.items()
        for other in ("old", "new", "very")
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A base, rows of four tasks, and the file of an adapter with the head of its own task."""
    folder = tmp_path_factory.mktemp("fusion")
    zoo.fresh("bert").save_pretrained(folder / "base")
    tiny.tokenizer("encoder").save_pretrained(folder / "base")
    paths = {
        "films": rows(folder / "films.jsonl", {"good": "yes", "bad": "no", "fine": "yes"}),
        "colours": rows(folder / "colours.jsonl", {"red": "warm", "blue": "cold"}),
        "target": rows(folder / "target.jsonl", {"one": "few", "ten": "many", "nine": "many"}),
    }
    model, tokenizer = load_base(folder / "base")
    head = inlay.METHODS["Head"](labels=("a", "b", "c"))
    torch.manual_seed(3)
    handle = inlay.attach(model, head + inlay.Pfeiffer(bottleneck=4, std=0.3))
    sizes = handle.save(folder / "sizes.safetensors", tokenizer=tokenizer)
    return {"base": folder / "base", "sizes": sizes, **paths}


@pytest.fixture
def recipe(places, tmp_path):
    """`recipe(prune="2")` is the recipe with these changes."""

    def recipe(out="out", **changes):
        path = tmp_path / "recipe.yaml"
        path.write_text(TEXT.format(**places, out=tmp_path / out))
        return FuseRecipe.load(path, {k.replace("__", "."): v for k, v in changes.items()})

    return recipe


def tensors(path):
    return read(path).tensors


# ------------------------------------------------------------------------------- the recipe


def test_a_recipe_prints_itself_back(recipe, tmp_path):
    plan = recipe(prune="2")
    assert plan.adapters["sizes"].file is not None and "films" in plan.trained()
    printed = tmp_path / "printed.yaml"
    printed.write_text(plan.dump())
    assert f"sizes: {plan.adapters['sizes'].file}" in plan.dump()
    assert FuseRecipe.load(printed) == plan


def test_any_field_of_either_stage_can_be_set(recipe):
    plan = recipe(adapters__films__training__steps="7", adapters__new="new.safetensors")
    assert plan.adapters["films"].training.steps == 7
    assert plan.adapters["new"].file == "new.safetensors"


def test_all_faults_are_in_one_message(recipe):
    with pytest.raises(RecipeError) as error:
        recipe(
            adapters__films__training__stepps="7",
            adapters__colours__task__kind="clasify",
            adapters__sizes='{"file": "x", "seed": 3}',
            adapters__last='{"task": {"kind": "classify"}}',
            prune="0",
        )
    for part in (
        "5 faults",
        "adapters.films.training.stepps: there is no such field; did you mean 'steps'?",
        "adapters.colours.task: ",
        "adapters.sizes: it is trained already, in x; leave seed out",
        "adapters.last: data is missing; give them to train it, or the file of a trained one",
        "prune: ",
    ):
        assert part in str(error.value)


def test_what_does_not_fit_together_is_in_one_message(recipe):
    with pytest.raises(RecipeError) as error:
        recipe(
            prune="3",
            adapters__colours__training__eval_every="1",
            adapters__colours__method="Parallel()",
            plus="BitFit()",
        )
    for part in (
        "it has 3 faults",
        "prune keeps fewer adapters than the 3 there are, not 3",
        "adapters.colours.training.eval_every needs rows to evaluate on",
        "Fusion: its adapters must be of one kind",
    ):
        assert part in str(error.value)
    for changes, part in (
        ({"adapters": '{"a": "a.safetensors"}'}, "none is trained; leave method out"),
        ({"fusion__names": "[1]"}, "names follow from the recipe's adapters"),
        ({"fusion__dropuot": "0.1"}, "did you mean 'dropout'"),
        ({"adapters__films__method": "LoRA() + BitFit()"}, r"adapters.films: a fusion is made of"),
        ({"training__base_lr": "0.1"}, "training.base_lr would train the base, which all"),
        ({"adapters__films__training__base_lr": "0.1"}, "adapters.films.training.base_lr would"),
        ({"adapters__a b": "x"}, "a name is letters, digits, '_' and '-', not 'a b'"),
        ({"adapters__films": "3"}, "write the file of a trained adapter, or how to train one"),
        ({"adapters": "{}"}, "adapters: "),
    ):
        with pytest.raises(RecipeError) as error:
            recipe(**changes)
        assert part in str(error.value)


def test_what_cannot_be_fused_is_named_before_anything_is_trained(recipe, tmp_path, places):
    lora = tmp_path / "lora.safetensors"
    inlay.attach(load_base(places["base"])[0], inlay.LoRA(rank=2) + inlay.IA3()).save(lora)
    with pytest.raises(RecipeError) as error:
        train_fusion(recipe(adapters__sizes=str(lora), adapters__more="none.safetensors"))
    assert "adapters.sizes: " in str(error.value) and "holds 2 methods" in str(error.value)
    assert "adapters.more: cannot read none.safetensors" in str(error.value)
    with pytest.raises(RecipeError) as error:
        train_fusion(
            recipe(adapters__films__data__train__source="no.jsonl", data__dev__source="none.csv")
        )
    assert "adapters.films: " in str(error.value) and "the target: " in str(error.value)
    one = tmp_path / "one.safetensors"
    inlay.attach(load_base(places["base"])[0], inlay.LoRA(rank=2)).save(one)
    method = {f"adapters__{name}__method": "LoRA(rank=2)" for name in ("films", "colours")}
    plan = recipe(adapters__sizes=str(one), **method)
    with pytest.raises(InlayError, match="Fusion attends over bottlenecks, and LoRA"):
        train_fusion(plan)
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------- both stages


@pytest.fixture(scope="module")
def trained(places, tmp_path_factory):
    """The result of the recipe, run at once."""
    folder = tmp_path_factory.mktemp("run")
    path = folder / "recipe.yaml"
    path.write_text(TEXT.format(**places, out=folder / "out"))
    return train_fusion(FuseRecipe.load(path, {"prune": "2"}))


def test_both_stages_leave_their_files(trained, places):
    out = trained.fusion.path.parent
    assert [(a.name, a.trained) for a in trained.adapters] == [
        ("films", True),
        ("colours", True),
        ("sizes", False),
    ]
    for name in ("films", "colours"):
        assert (out / "adapters" / name / f"{name}.safetensors").is_file()
    assert {"fuse.yaml", "recipe.yaml", "result.json", "log.jsonl"} <= {
        path.name for path in out.iterdir()
    }
    result = json.loads((out / "result.json").read_text())
    assert result["dev"] == trained.fusion.dev and result["measured"] == "dev"
    assert [adapter["name"] for adapter in result["adapters"]] == ["films", "colours", "sizes"]
    assert all(abs(sum(place.values()) - 1) < 1e-5 for place in result["weights"].values())
    fusion = read(trained.fusion.path).spec.methods[0]
    assert fusion.names == ("films", "colours", "sizes")
    assert [adapter.bottleneck for adapter in fusion.adapters] == [3, 2, 4]


def test_adapters_are_frozen_in_the_second_stage(trained, places):
    fused, out = tensors(trained.fusion.path), trained.fusion.path.parent
    for number, path in enumerate(
        [out / "adapters/films/films.safetensors", out / "adapters/colours/colours.safetensors"]
    ):
        for name, tensor in tensors(path).items():
            if "/pfeiffer/" in name:
                site, _, part = name.partition("/0/pfeiffer/inner.")
                copy = f"{site}/0/fusion/adapter.inner.bottlenecks.{number}.{part}"
                assert torch.equal(fused[copy], tensor)
    start = tensors(trained.recipe.start_path)
    queries = [name for name in start if name.endswith("attention.query")]
    assert queries and all(not torch.equal(start[name], fused[name]) for name in queries)


def test_the_file_is_complete_by_itself(trained, places, tmp_path):
    path = shutil.copy(trained.fusion.path, tmp_path / "alone.safetensors")
    opened = inlay.open(path, device="cpu")
    record = opened.predict("the film was ten and old")
    assert record["prediction"] in ("few", "many")
    assert opened.handle.spec.methods[0].names == ("films", "colours", "sizes")


def test_the_second_stage_is_a_recipe_of_its_own(trained):
    from inlay.training import Recipe, run

    again = run(Recipe.load(trained.fusion.path.parent / "recipe.yaml"))
    assert again.training.steps == 3 and again.dev == trained.fusion.dev


def test_a_killed_run_goes_on_where_it_was(recipe, trained, monkeypatch):
    steps = []
    run = run_module.run

    def killed(plan, *arguments, **options):
        steps.append(plan.name)
        if plan.name == "default" and steps.count("default") == 1:
            raise KeyboardInterrupt
        return run(plan, *arguments, **options)

    monkeypatch.setattr(run_module, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        train_fusion(recipe())
    result = train_fusion(recipe())
    assert steps == ["films", "colours", "default", "default"]
    assert [adapter.trained for adapter in result.adapters] == [False, False, False]
    assert result.adapters[0].scores == trained.adapters[0].scores
    first, second = tensors(trained.fusion.path), tensors(result.fusion.path)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_stage_of_another_run_is_refused_unless_all_is_trained_anew(recipe, places, tmp_path):
    plan = recipe()
    train_fusion(plan)
    with pytest.raises(TrainingError, match=r"films.safetensors is of another run: training.steps"):
        train_fusion(recipe(adapters__films__training__steps="2"))
    assert (
        train_fusion(recipe(adapters__films__training__steps="2"), resume=False).adapters[0].trained
    )
    copy = shutil.copy(places["colours"], tmp_path / "colours.jsonl")
    other = recipe("other", adapters__colours__data__train__source=str(copy))
    train_fusion(other)
    rows(tmp_path / "colours.jsonl", {"red": "warm", "blue": "cold", "old": "cold"})
    with pytest.raises(TrainingError, match=r"data.train \(its rows\) was"):
        train_fusion(other)


def test_methods_beside_the_fusion_are_trained_too(recipe):
    result = train_fusion(recipe(plus="BitFit() + Prefix(length=2, mlp=4)"))
    kinds = [type(m).__name__ for m in read(result.fusion.path).spec.methods]
    assert kinds == ["Fusion", "BitFit", "Prefix", "Head"]


# --------------------------------------------------------------------------------- pruning


def test_a_second_file_keeps_the_most_used(trained, places):
    pruned = trained.pruned
    most = sorted(trained.means, key=trained.means.get, reverse=True)[:2]
    assert pruned.path.name == "default-keep2.safetensors"
    kept = read(pruned.path).spec.methods[0]
    assert set(kept.names) == set(most)
    assert set(pruned.adapters["1"]) == set(most)
    assert pruned.dev.keys() == trained.fusion.dev.keys()
    assert inlay.open(pruned.path, device="cpu").predict("ten")["prediction"] in ("few", "many")


def test_each_layer_can_keep_its_own(recipe, places):
    result = train_fusion(recipe(prune="1", prune_per="layer"))
    weights = {name.split(".")[1]: place for name, place in result.weights.items()}
    expected = {layer: [max(place, key=place.get)] for layer, place in weights.items()}
    assert result.pruned.adapters == expected
    model, _ = load_base(places["base"])
    handle = inlay.load(model, result.pruned.path)
    texts = list(token_batches(handle, [[7, 8, 9, 10]]))
    read_out = inlay.adapter_weights(handle, texts)
    assert {n.split(".")[1]: list(place) for n, place in read_out.items()} == expected


def test_files_alone_need_no_first_stage(trained, places, tmp_path):
    out = trained.fusion.path.parent
    text = TEXT.format(**places, out=tmp_path / "out").replace(
        "method: Pfeiffer(bottleneck=3, std=0.3)\n", "", 1
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    files = {
        name: str(out / f"adapters/{name}/{name}.safetensors") for name in ("films", "colours")
    }
    plan = FuseRecipe.load(path, {f"adapters.{name}": file for name, file in files.items()})
    result = train_fusion(plan)
    assert [adapter.scores for adapter in result.adapters] == [None, None, None]
    assert [p.name for p in (tmp_path / "out" / "adapters").iterdir()] == ["start.safetensors"]
    first, second = tensors(trained.fusion.path), tensors(result.fusion.path)
    assert all(torch.equal(first[name], second[name]) for name in first)
