"""Cross-validation: what is held out, what is trained, what is told."""

import json
import sys
from statistics import mean, stdev

import pytest
import torch
import transformers as hf

from inlay.data.loading import load
from inlay.errors import DataError, RecipeError, TrainingError
from inlay.files.format import read
from inlay.tasks import BinaryCrossEntropy, Classify, Regress
from inlay.training import Recipe, cross_validate, run
from inlay.training.recipes.folds import split_folds
from tests.tasks import tiny as words
from tests.training import tiny

LABELS = ["no"] * 10 + ["yes"] * 20 + ["maybe"] * 4


def rows(labels=LABELS):
    return [{"text": f"the {words.WORDS[n]}", "label": label} for n, label in enumerate(labels)]


@pytest.mark.parametrize("task", [Classify(), Regress(), Classify(objective=BinaryCrossEntropy())])
def test_every_row_is_held_out_once(task):
    data = load([{**row, "label": n} if task.name == "regress" else {**row, "labels": ["a"]} for n, row in enumerate(rows())])  # fmt: skip
    parts = split_folds(data, task, 4, seed=3)
    held = [example for _, out in parts for example in out]
    assert sorted(held, key=lambda example: int(example.where.split("#")[1])) == list(data)
    for train, out in parts:
        assert not set(map(id, train)) & set(map(id, out))
        assert len(train) + len(out) == len(data)
        assert len(out) in (8, 9)
        numbers = [int(example.where.split("#")[1]) for example in train]
        assert numbers == sorted(numbers)
    assert parts == split_folds(data, task, 4, seed=3)
    assert parts != split_folds(data, task, 4, seed=4)


def test_folds_have_alike_shares_of_each_label():
    task = Classify(label_names={"maybe": "perhaps", "no": "no", "yes": "yes"})
    for _, out in split_folds(load(rows()), task, 4, seed=0):
        labels = [str(example.fields["label"]) for example in out]
        assert labels.count("maybe") == 1
        assert labels.count("yes") == 5
        assert labels.count("no") in (2, 3)


def test_folds_that_cannot_be_made(monkeypatch):
    with pytest.raises(DataError, match=r"has 4 of label 'maybe', fewer than folds=5"):
        split_folds(load(rows()), Classify(), 5, seed=0)
    with pytest.raises(DataError, match=r"has 3 rows, fewer than folds=5"):
        split_folds(load(rows()[:3]), Regress(), 5, seed=0)
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(TrainingError, match=r"cross-validation needs scikit-learn: pip install"):
        split_folds(load(rows()), Classify(), 2, seed=0)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    config = hf.LlamaConfig(**{**tiny.CONFIG, "vocab_size": 99}, bos_token_id=1, eos_token_id=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf.LlamaForCausalLM(config).save_pretrained(folder / "base")
    words.tokenizer("decoder").save_pretrained(folder / "base")
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(LABELS[:30])))
    return {
        "base": str(folder / "base"),
        "method": "LoRA(rank=1)",
        "task": {"kind": "classify"},
        "data": {"train": {"source": str(path)}},
        "training": {"steps": 3, "batch_size": 4},
        "folds": 3,
        "seed": 5,
    }


def test_a_recipe_is_trained_once_a_fold(recipe, tmp_path):
    whole = Recipe.model_validate({**recipe, "out": str(tmp_path / "all")})
    result = cross_validate(whole, tiny.quiet())
    assert len(result.scores) == 3
    assert result.metric == "accuracy"
    for name in ("accuracy", "f1", "macro_f1", "matthews"):
        values = [scores[name] for scores in result.scores]
        assert result.mean[name] == pytest.approx(mean(values))
        assert result.sd[name] == pytest.approx(stdev(values))
    content = json.loads((tmp_path / "all" / "folds.json").read_text())
    assert content["folds"] == result.scores
    assert content["sd"] == result.sd
    for number in (1, 2, 3):
        folder = tmp_path / "all" / f"fold-{number}"
        fold_result = json.loads((folder / "result.json").read_text())
        assert fold_result["test"] == result.scores[number - 1]
        assert (folder / "default.safetensors").exists()
    single = Recipe.load(tmp_path / "all" / "fold-2" / "recipe.yaml", {"out": str(tmp_path / "b")})
    assert single.fold == 2
    outcome = run(single, tiny.quiet())
    assert outcome.test == result.scores[1]
    files = [tmp_path / "all" / "fold-2" / "default.safetensors", outcome.path]
    a, b = (read(path).tensors for path in files)
    assert tiny.same(a, b)
    other = read(tmp_path / "all" / "fold-1" / "default.safetensors").tensors
    assert not tiny.same(a, other)


def test_nothing_is_learned_from_rows_held_out(recipe, tmp_path, monkeypatch):
    module = sys.modules["inlay.training.recipes.run"]
    prepared, split = [], []
    monkeypatch.setattr(
        module, "split_folds", lambda *a: split.append(split_folds(*a)) or split[-1]
    )
    real = Classify.prepare
    monkeypatch.setattr(
        Classify, "prepare", lambda self, rows: prepared.append((self, list(rows))) or real(self, rows)
    )  # fmt: skip
    task = {"kind": "classify", "objective": {"class_weight": "balanced"}}
    fields = {**recipe, "task": task, "fold": 2, "out": str(tmp_path)}
    run(Recipe.model_validate(fields), tiny.quiet())
    train, held = split[0][1]
    assert len(held) == 10
    rows_seen = [rows for task, rows in prepared if task._class_weights is not None][-1]
    assert rows_seen == list(train)


def test_labels_of_rows_held_out_are_known(recipe, tmp_path):
    path = tmp_path / "rows.jsonl"
    labels = [[label] for label in LABELS[:29]] + [["rare"]]
    examples = [
        {"text": row["text"], "labels": label_list}
        for row, label_list in zip(rows(), labels, strict=False)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in examples))
    task = {"kind": "classify", "objective": {"kind": "binary_cross_entropy"}}
    data = {"train": {"source": str(path)}}
    whole = {**recipe, "task": task, "data": data, "out": str(tmp_path / "out")}
    result = cross_validate(Recipe.model_validate(whole), tiny.quiet())
    assert len(result.scores) == 3


def test_recipes_with_folds_that_make_no_sense(recipe, tmp_path):
    plain = {**recipe, "out": str(tmp_path)}
    written = tmp_path / "recipe.yaml"

    def refused(call, message):
        with pytest.raises(RecipeError) as caught:
            call()
        assert message in str(caught.value)

    def read(**fields):
        written.write_text(json.dumps({**plain, **fields}))
        return lambda: Recipe.load(written)

    tested = {**recipe["data"], "test": {"source": "x"}}
    refused(read(data=tested), "folds are tested on shares of data.train; leave data.test out")
    refused(read(fold=4), "there is no fold 4: the recipe has 3 folds")
    refused(read(folds=None, fold=1), "there is no fold 1: the recipe has 0 folds")
    refused(read(folds=1), "folds: input should be greater than or equal to 2")
    refused(lambda: run(read()()), "give fold, or call cross_validate")
    refused(lambda: cross_validate(read(folds=None)()), "takes a recipe with folds")
    refused(lambda: cross_validate(read(fold=1)()), "takes a recipe with folds, and without fold")
