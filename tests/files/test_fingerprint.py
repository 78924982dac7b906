"""Fingerprints: what tells one base from another, and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file

import inlay
from inlay.architectures.resolve import resolve
from inlay.errors import BaseError
from inlay.files.fingerprint import fingerprint
from inlay.files.format import digest
from tests import zoo
from tests.files.test_format import parts, refused, written

TENSORS = {
    "llama": [
        "model.embed_tokens.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.mlp.gate_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
    "bert": [
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.position_embeddings.weight",
        "bert.embeddings.LayerNorm.bias",
        "bert.encoder.layer.1.output.LayerNorm.weight",
        "bert.encoder.layer.1.attention.self.key.bias",
    ],
    "t5": ["shared.weight", "decoder.final_layer_norm.weight", "lm_head.weight"],
    "llava": [
        "model.vision_tower.embeddings.patch_embedding.weight",
        "model.vision_tower.encoder.layers.1.mlp.fc2.bias",
        "model.multi_modal_projector.linear_2.weight",
        "model.language_model.norm.weight",
    ],
    "wav2vec2": [
        "feature_extractor.conv_layers.1.conv.weight",
        "feature_projection.projection.weight",
        "encoder.layer_norm.bias",
    ],
}


def mamba() -> Any:
    config = hf.MambaConfig(
        hidden_size=32, num_hidden_layers=2, state_size=4, vocab_size=99, **zoo.IDS
    )
    torch.manual_seed(0)
    return hf.MambaForCausalLM(config).eval()


def without_new_entries(file: Path) -> None:
    """Make a file one of those that hold samples of projections alone."""
    header, tensors = parts(file)
    base = json.loads(header["base"])
    del base["tensors"], base["vocabulary"]
    header["base"] = json.dumps(base)
    save_file(tensors, file, metadata={**header, "digest": digest(header, tensors)})


@pytest.mark.parametrize(
    ("family", "name"), [(f, n) for f, names in TENSORS.items() for n in names]
)
def test_a_base_that_differs_in_one_tensor(tmp_path: Path, family: str, name: str) -> None:
    written(zoo.fresh(family), tmp_path / "x.safetensors", inlay.LoRA(rank=2))
    other = zoo.fresh(family)
    parameter = other.get_parameter(name)
    with torch.no_grad():
        parameter.copy_(torch.randn_like(parameter))
    refused(other, tmp_path / "x.safetensors", BaseError, "another base: the weights at .* differ")
    assert inlay.load(other, tmp_path / "x.safetensors", strict=False).attached


@pytest.mark.parametrize("family", [*TENSORS, "gpt2", "marian", "vit", "whisper", "modernbert"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_base_in_sixteen_bits(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    written(zoo.fresh(family), tmp_path / "x.safetensors", inlay.LoRA(rank=2))
    assert inlay.load(zoo.fresh(family).to(dtype), tmp_path / "x.safetensors").attached


def test_other_classes_of_one_base(tmp_path: Path) -> None:
    """A pooler and a classifier that the file's base has not, or has at random, are no matter."""
    masked = zoo.fresh("bert")
    written(masked, tmp_path / "x.safetensors", inlay.LoRA(rank=2))
    for seed in (0, 1):
        torch.manual_seed(seed)
        bare = hf.BertModel(masked.config).eval()
        bare.load_state_dict(masked.bert.state_dict(), strict=False)
        inlay.load(bare, tmp_path / "x.safetensors").detach()
        written(bare, tmp_path / f"{seed}.safetensors", inlay.LoRA(rank=2))
        classifier = hf.BertForSequenceClassification(masked.config).eval()
        classifier.bert.load_state_dict(masked.bert.state_dict(), strict=False)
        for name in ("x", "0"):
            inlay.load(classifier, tmp_path / f"{name}.safetensors").detach()
        inlay.load(masked, tmp_path / f"{seed}.safetensors").detach()


def test_added_tokens(tmp_path: Path) -> None:
    model = zoo.fresh("llama")
    written(model, tmp_path / "small.safetensors", inlay.LoRA(rank=2))
    for seed, name in ((1, "one"), (2, "two")):
        wide = zoo.fresh("llama")
        wide.resize_token_embeddings(101, mean_resizing=False)
        torch.manual_seed(seed)
        with torch.no_grad():
            for table in (wide.get_input_embeddings(), wide.get_output_embeddings()):
                table.weight[-2:].normal_()
        written(wide, tmp_path / f"{name}.safetensors", inlay.LoRA(rank=2))
        refused(
            wide,
            tmp_path / "small.safetensors",
            BaseError,
            "one with 99 tokens, here are 101; give",
        )
    refused(wide, tmp_path / "one.safetensors", BaseError, "the weights at .*embed_tokens.*differ")
    refused(
        model, tmp_path / "one.safetensors", BaseError, "one with 101 tokens, here are 99; give"
    )
    with torch.no_grad():  # one new token of the two is another
        wide.get_input_embeddings().weight[-2].normal_()
    refused(wide, tmp_path / "two.safetensors", BaseError, "the weights at .*embed_tokens.*differ")


def test_a_base_without_known_projections(tmp_path: Path) -> None:
    model = mamba()
    written(model, tmp_path / "x.safetensors", inlay.PTuning(length=2))
    assert inlay.load(mamba(), tmp_path / "x.safetensors").attached
    other = mamba()
    with torch.no_grad():
        other.backbone.layers[1].mixer.A_log.mul_(1.5)
    refused(other, tmp_path / "x.safetensors", BaseError, "the weights at .*mixer.A_log differ")


def test_files_of_projections_alone_are_read_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    written(zoo.fresh("llama"), path, inlay.LoRA(rank=2))
    without_new_entries(path)
    other = zoo.fresh("llama")
    with torch.no_grad():
        other.model.norm.weight.mul_(2)
    inlay.load(other, path).detach()
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight.mul_(2)
    refused(other, path, BaseError, "the weights at decoder.0.attn.q differ")


def test_files_that_call_a_stack_of_images_encoder(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = written(zoo.fresh("vit"), path, inlay.LoRA(rank=2))
    header, stored = parts(path)
    base = header["base"].replace('"vision.', '"encoder.')
    header["base"] = base
    old = {name.replace("vision.", "encoder."): tensor for name, tensor in stored.items()}
    assert old.keys() != stored.keys()
    save_file(old, path, metadata={**header, "digest": digest(header, old)})
    without_new_entries(path)
    handle = inlay.load(zoo.fresh("vit"), path)
    for name, tensor in handle.named_tensors().items():
        assert torch.equal(tensor, tensors[name])


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_every_tensor_of_the_backbone_has_entries(family: str) -> None:
    model = zoo.model(family)
    chart = resolve(model)
    entries = fingerprint(chart)["tensors"]
    assert all(1 <= len(values) <= 32 for values in entries.values())
    tensors = dict(model.base_model.named_parameters())
    pooled = {n for n in tensors if n.startswith(("pooler", "visual_projection"))}
    assert len(entries) >= len(tensors) - len(pooled)
    assert len(json.dumps(entries)) < 40_000


def test_bounds_that_bound_nothing_are_equal_to_themselves(tmp_path: Path) -> None:
    """Gemma 4's audio keeps the ends of its clamps in buffers, which are infinite at first."""

    def base(lowest: float, highest: float) -> Any:
        model = zoo.fresh("llama")
        layer = model.model.layers[0].input_layernorm
        layer.register_buffer("bounds", torch.tensor([lowest, highest, 0.5]))
        return model

    infinite = float("inf")
    model = base(-infinite, infinite)
    path = inlay.attach(model, inlay.LoRA(rank=2)).save(tmp_path / "one.safetensors")
    inlay.load(base(-infinite, infinite), path)
    for bounds in ((-infinite, 3.0), (infinite, infinite), (-3.0, infinite)):
        with pytest.raises(BaseError, match="the weights at .*bounds differ"):
            inlay.load(base(*bounds), path)
