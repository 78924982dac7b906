"""methods and sites, which read without changing anything, and the names for tab completion."""

import pytest
from transformers import GPTJConfig, GPTJForCausalLM

import inlay as library
from inlay.hub.models import MODELS
from inlay_cli import catalogue, names
from tests.tasks import tiny


def test_methods_lists_every_method(inlay):
    run = inlay("methods")
    assert run.code == 0
    for name, kind in library.METHODS.items():
        assert name in run.out
        assert kind.paper in run.out
    assert "[x; INFIX; y]" in run.out  # not read as markup


def test_methods_explains_one(inlay):
    run = inlay("methods", "LoRA")
    assert run.code == 0
    for part in ("B A x", "Hu et al., ICLR 2022", "rank", "R, the rank of the update", "16.0"):
        assert part in run.out
    assert "inlay.attach(model, LoRA(rank=8))" in run.out


def test_methods_says_how_to_prepare_one(inlay):
    run = inlay("methods", "FISH")
    assert "prepared = inlay.training.prepare(model, spec, task, data)" in run.out
    assert "inlay.attach(model, spec, prepared=prepared)" in run.out


def test_methods_names_the_nearest(inlay):
    assert "did you mean 'LoRA'?" in inlay("methods", "lora").error


@pytest.mark.parametrize(
    ("name", "port", "merges", "identity"),
    [
        ("LoRA", "module hooks", True, True),
        ("IA3", "module hooks", True, True),
        ("FAR", "module hooks", True, True),  # which prepares
        ("Houlsby", "module hooks", False, False),
        ("Prefix", "extra keys and values", False, False),
        ("Prompt", "prompts", False, False),
        ("Head", "head", False, True),
    ],
)
def test_the_catalogue_is_true(name, port, merges, identity):
    entry = catalogue.entry(name)
    assert (entry.port, entry.merges, entry.identity) == (port, merges, identity)


def test_the_catalogue_explains_every_field():
    for entry in catalogue.catalogue():
        for field in entry.fields:
            assert field.about, f"{entry.name}.{field.name}"


def test_sites_draws_the_map_by_role(inlay, base):
    run = inlay("sites", base)
    assert run.code == 0
    assert "LlamaForCausalLM  decoder, 3 blocks" in run.out
    lines = {line.split()[0]: line for line in run.out.splitlines() if line.strip()}
    assert "32 → 32" in lines["attn.q"]
    assert "2 heads × 8" in lines["attn.kv"]
    assert " extra keys/values " in lines["attn.kv"]
    assert "hooks, prompts" in lines["embed"]
    assert "has no description" not in run.out


def test_sites_lists_every_place(inlay, base):
    run = inlay("sites", base, "--all")
    for number in range(3):
        assert f"decoder.{number}.mlp.down" in run.out


def test_sites_warns_about_a_family_without_description(inlay, tmp_path):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64}
    model = GPTJForCausalLM(GPTJConfig(**sizes, vocab_size=99))
    model.save_pretrained(tmp_path / "gptj")
    tiny.tokenizer("decoder").save_pretrained(tmp_path / "gptj")
    run = inlay("sites", tmp_path / "gptj")
    assert run.code == 0
    assert "The family 'gptj' has no description" in run.out


def test_sites_leaves_meanings_out_where_they_do_not_fit(inlay, base, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run = inlay("sites", base)
    assert "query projection" not in run.out
    assert max(map(len, run.out.splitlines())) <= 80


def test_an_unknown_base_is_named_with_its_nearest(inlay):
    assert "did you mean 'smollm2'?" in inlay("sites", "smollm").error


def test_completed_names_are_the_real_ones():
    ours = {n for n, kind in library.METHODS.items() if kind.__module__.startswith("inlay.")}
    assert set(names.method_names()) == ours
    assert set(names.model_names()) == set(MODELS)


def test_names_are_found_in_folders_of_methods(tmp_path):
    """Also of a method whose base is another method, defined in a file that is read later."""
    files = {
        "methods/__init__.py": "",
        "methods/a.py": "class Child(Parent):\n    pass\n\nclass _Private(Method):\n    pass",
        "methods/new/b.py": "class Parent(core.Method):\n    pass\n\nclass Other(nn.Module):\n    pass",
        "methods/new/c.py": "class Hidden(Method, listed=False):\n    pass\n\nclass Leaf(Hidden):\n    pass",
        "hub/deep/models.py": 'MODELS = MappingProxyType({"tiny": Bundled({"a": 1}), "small": 2})',
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert names.methods_in(tmp_path / "methods") == ["Child", "Leaf", "Parent"]
    assert names.models_in(tmp_path / "hub") == ["tiny", "small"]
