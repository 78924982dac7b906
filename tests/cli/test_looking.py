"""methods, sites and names: commands that only look."""

import pytest
from transformers import FalconConfig, FalconForCausalLM

import inlay as library
from inlay.hub.models import MODELS
from inlay_cli import catalogue, names
from tests.tasks import tiny


def test_methods_lists_every_method(inlay):
    ran = inlay("methods")
    assert ran.code == 0
    for name, kind in library.METHODS.items():
        assert name in ran.out
        assert kind.paper in ran.out
    assert "[x; INFIX; y]" in ran.out  # not taken for markup


def test_methods_teaches_one(inlay):
    ran = inlay("methods", "LoRA")
    assert ran.code == 0
    for said in ("B A x", "Hu et al., ICLR 2022", "rank", "R, the rank of the update", "16.0"):
        assert said in ran.out
    assert "inlay.attach(model, LoRA(rank=8))" in ran.out


def test_methods_names_the_nearest(inlay):
    assert "did you mean 'LoRA'?" in inlay("methods", "lora").error


@pytest.mark.parametrize(
    ("name", "port", "merges", "identity"),
    [
        ("LoRA", "tap", True, True),
        ("IA3", "tap", True, True),
        ("Houlsby", "tap", False, False),
        ("Prefix", "keys", False, False),
        ("Prompt", "slots", False, False),
        ("Head", "head", False, True),
    ],
)
def test_the_catalogue_is_true(name, port, merges, identity):
    one = catalogue.entry(name)
    assert (one.port, one.merges, one.identity) == (port, merges, identity)


def test_the_catalogue_explains_every_field():
    for one in catalogue.catalogue():
        for field in one.fields:
            assert field.about, f"{one.name}.{field.name}"


def test_sites_draws_the_map_by_role(inlay, base):
    ran = inlay("sites", base)
    assert ran.code == 0
    assert "LlamaForCausalLM  decoder, 3 blocks" in ran.out
    lines = {line.split()[0]: line for line in ran.out.splitlines() if line.strip()}
    assert "32 → 32" in lines["attn.q"]
    assert "2 heads × 8" in lines["attn.kv"]
    assert " keys " in lines["attn.kv"]
    assert "tap, slots" in lines["embed"]
    assert "Nobody charted" not in ran.out


def test_sites_lists_every_place(inlay, base):
    ran = inlay("sites", base, "--all")
    for number in range(3):
        assert f"decoder.{number}.mlp.down" in ran.out


def test_sites_says_when_nobody_charted_the_family(inlay, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = FalconForCausalLM(FalconConfig(**sizes, vocab_size=99))
    model.save_pretrained(tmp_path / "falcon")
    tiny.tokenizer("decoder").save_pretrained(tmp_path / "falcon")
    ran = inlay("sites", tmp_path / "falcon")
    assert ran.code == 0
    assert "Nobody charted the family 'falcon'" in ran.out


def test_sites_leaves_meanings_out_where_they_do_not_fit(inlay, base, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ran = inlay("sites", base)
    assert "query projection" not in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


def test_an_unknown_base_is_named_with_its_nearest(inlay):
    assert "did you mean 'smollm2'?" in inlay("sites", "smollm").error


def test_names_to_complete_are_the_real_ones():
    ours = {n for n, kind in library.METHODS.items() if kind.__module__.startswith("inlay.")}
    assert set(names.method_names()) == ours
    assert set(names.model_names()) == set(MODELS)
