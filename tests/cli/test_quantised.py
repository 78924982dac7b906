"""`--quantize`: training, predicting and merging on a base in 8 and 4 bits."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as hf
from transformers.utils.import_utils import is_torchao_available

from inlay.core.quantised import memory_of, quantisation, quantised_modules
from inlay.errors import FetchError
from inlay.hub import load_base
from tests.tasks import tiny

pytest.importorskip("bitsandbytes")
without_torchao = pytest.mark.skipif(
    not is_torchao_available(), reason="torchao is not installed: make test-torchao"
)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A decoder whose matrices have rows of whole blocks of 64."""
    folder = tmp_path_factory.mktemp("bases") / "wide"
    tokenizer = tiny.tokenizer("decoder")
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=len(tokenizer), pad_token_id=0,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "kind",
    [
        "int8",
        "nf4",
        pytest.param("torchao-int8", marks=without_torchao),
        pytest.param("torchao-int4", marks=without_torchao),
    ],
)
def test_load_base(wide, kind):
    lines = []
    model, _ = load_base(wide, quantize=kind, report=lines.append)
    kinds = {quantisation(module) for module in quantised_modules(model).values()}
    assert len(kinds) == 1 and None not in kinds
    assert f"quantised to {kind}" in lines[-1]
    plain, _ = load_base(wide)
    bits = {"int8": 8, "nf4": 4, "torchao-int8": 8, "torchao-int4": 8}[kind]  # the last in bytes
    numbers = sum(m.in_features * m.out_features for m in quantised_modules(model).values())
    saved = memory_of(plain) - memory_of(model)
    assert saved == pytest.approx(numbers * (32 - bits) / 8, rel=0.05)


@pytest.mark.skipif(is_torchao_available(), reason="torchao is installed")
def test_a_library_that_is_not_installed_is_named(wide):
    with pytest.raises(FetchError, match=r"pip install 'inlay\[torchao\]'"):
        load_base(wide, quantize="torchao-int8")


def test_what_cannot_be_quantised_is_refused(base, tmp_path):
    with pytest.raises(FetchError, match="multiples of 64"):
        load_base(base, quantize="nf4")
    with pytest.raises(FetchError, match="did you mean 'nf4'"):
        load_base(base, quantize="nf")


@without_torchao
def test_a_base_of_which_nothing_is_quantised_is_refused(tmp_path):
    folder = tmp_path / "gpt2"
    hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=90)).save_pretrained(
        folder
    )
    tiny.tokenizer("decoder").save_pretrained(folder)
    with pytest.raises(FetchError, match="nothing of"):
        load_base(folder, quantize="torchao-int8")


def test_from_training_to_a_merged_folder(inlay, wide, tmp_path):
    rows = [{"text": f"a {'good' if n % 2 else 'bad'} film", "label": n % 2} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = inlay(
        "train", "--base", wide, "--method", "LoRA(rank=2)", "--task", "classify",
        "--train", "rows.jsonl", "--dev", "rows.jsonl", "--quantize", "nf4", "--steps", "2",
        "--out", "out",
    )  # fmt: skip
    assert run.code == 0, run.err
    assert "quantised to nf4" in run.err
    file = "out/default.safetensors"
    run = inlay("predict", file, "rows.jsonl")  # the file knows how its base was kept
    assert run.code == 0 and "quantised to nf4" in run.err, run.err
    run = inlay("eval", file)
    assert run.code == 0 and "quantised to nf4" in run.err, run.err
    assert "quantised to nf4, and here it is" in inlay("eval", file, "--quantize", "int8").error
    assert "--dequantize" in inlay("merge", file, "--out", "merged").error
    assert not (tmp_path / "merged").exists()
    run = inlay("merge", file, "--out", "merged", "--dequantize")
    assert run.code == 0, run.err
    assert "14 matrices were dequantised" in run.err
    merged = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert not quantised_modules(merged)


def test_a_recipe_cannot_train_a_quantised_base(inlay, wide, tmp_path):
    run = inlay(
        "train", "--base", wide, "--task", "generate", "--train", "rows.jsonl", "--out", "out",
        "--quantize", "int8", "--base-lr", "1e-4",
    )  # fmt: skip
    assert "stays frozen" in run.error
