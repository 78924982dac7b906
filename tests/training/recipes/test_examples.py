"""Every recipe under examples/: small, listed, and carried out on its real rows by a tiny base.

The rows stand in a folder `shared/data` beside the repository, or where INLAY_DATA says.
"""

import os
from pathlib import Path

import pytest
import torch
import transformers as hf
from rich.console import Console

from inlay.training import Recipe, run
from tests.tasks.tiny import CHAT, tokenizer

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("INLAY_DATA", ROOT.parent / "shared" / "data"))
RECIPES = sorted((ROOT / "examples").glob("*.yaml"))
OWN = ("reviews",)
"""Recipes for rows of one's own, which no folder has."""
FETCHED = ("movies",)
"""Recipes whose rows come from the package index."""

SIZE = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
NARROW = {
    **SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 2048,
}
BASES = {
    "smollm2": ("decoder", lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**NARROW))),
    "minilm": ("encoder", lambda: hf.BertForMaskedLM(hf.BertConfig(**NARROW))),
    "flan-t5-small": (
        "encoder-decoder",
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(
                **{**SIZE, "eos_token_id": 1, "decoder_start_token_id": 0},
                d_model=16,
                d_kv=8,
                d_ff=24,
                num_layers=2,
                num_heads=2,
            )
        ),
    ),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A folder for each base that the recipes name, with a model of two layers in it."""
    folder = tmp_path_factory.mktemp("bases")
    for name, (kind, make) in BASES.items():
        torch.manual_seed(0)
        make().save_pretrained(folder / name)
        tokenizer(kind, chat=CHAT).save_pretrained(folder / name)
    return folder


def parts(recipe):
    """The rows that a recipe names."""
    sources = {part: getattr(recipe.data, part) for part in ("train", "dev", "test")}
    return {part: source for part, source in sources.items() if source is not None}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_small_and_named_like_its_file(path):
    recipe = Recipe.load(path)
    assert len(path.read_text().splitlines()) < 30
    assert recipe.name == path.stem and recipe.out == f"runs/{path.stem}"
    assert recipe.base in BASES


def test_every_example_is_listed():
    listed = (ROOT / "examples" / "README.md").read_text()
    for path in (ROOT / "examples").iterdir():
        assert path.name == "README.md" or f"[{path.name}]({path.name})" in listed, path.name


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.stem not in OWN], ids=lambda path: path.stem
)
def test_a_recipe_runs_on_its_real_rows(path, bases, tmp_path, monkeypatch):
    if path.stem not in FETCHED and not DATA.is_dir():
        pytest.skip(f"there is no folder {DATA} with the data; INLAY_DATA names another")
    if path.stem not in FETCHED:
        (tmp_path / "data").symlink_to(DATA)
    monkeypatch.chdir(tmp_path)
    whole = Recipe.load(path)
    changes = {"base": str(bases / whole.base), "training.steps": "2", "training.epochs": "null"}
    changes |= {f"data.{part}.limit": "12" for part in parts(whole)}
    if whole.task["kind"] == "tag":  # all of the tags stand in all of the rows
        changes["data.train.limit"] = "null"
    if whole.task["kind"] == "generate":
        changes["task.max_length"] = "2048"  # here a letter is a token
        changes["task.generation.max_new_tokens"] = "2"
    if whole.training.eval_every is not None:
        changes["training.eval_every"] = "2"
    outcome = run(Recipe.load(path, changes), Console(quiet=True))
    assert outcome.training.steps == 2 and outcome.path.is_file()
    scores = outcome.dev if outcome.test is None else outcome.test
    assert scores is not None and outcome.metric in scores
    if "demonstrations" in whole.task:
        written = Recipe.load(tmp_path / whole.out / "recipe.yaml").task["demonstrations"]
        assert len(written) == whole.task["demonstrations"], "the recipe keeps what was drawn"
