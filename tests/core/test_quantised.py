"""Quantised bases: pieces act, learn, are saved and merged as on any other, and say what differs."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
import transformers as hf
from transformers import AutoModelForCausalLM, TorchAoConfig
from transformers.utils.import_utils import is_torchao_available

import inlay
from inlay.architectures.resolve import resolve
from inlay.core.quantised import dequantised, keep_layout, quantisation, quantised_modules
from inlay.errors import BaseError, FetchError, QuantisedError, SpecError
from inlay.hub.quantise import QUANTISATIONS, quantisation_config
from inlay.laws.case import perturb
from tests.methods import exact

pytest.importorskip("bitsandbytes")
without_torchao = pytest.mark.skipif(
    not is_torchao_available(), reason="torchao is not installed: make test-torchao"
)

KINDS = {"int8": "int8", "nf4": "nf4", "torchao-int8": "torchao-Int8Tensor"}
KINDS["torchao-int4"] = "torchao-IntxUnpackedToInt8Tensor"

every_kind = pytest.mark.parametrize(
    "kind", ["int8", "nf4", *(pytest.param(k, marks=without_torchao) for k in list(KINDS)[2:])]
)

SPECS = (
    inlay.LoRA(rank=2),
    inlay.LoRA(rank=2, start="principal"),
    inlay.IA3(),
    inlay.Houlsby(bottleneck=4),
    inlay.Prefix(length=2, mlp=None),
    inlay.Prompt(length=2),
    inlay.BitFit(),
    inlay.DoRA(rank=2),
    inlay.KronA(),
    inlay.TopLayers(layers=1),
    inlay.Sparse(keep=0.1),
)


SIZES = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def fresh(family: str):
    """A model whose matrices have rows of whole blocks of 64."""
    torch.manual_seed(0)
    if family == "llama":
        kind, config = hf.LlamaForCausalLM, hf.LlamaConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, **SIZES,
        )  # fmt: skip
    elif family == "gpt2":
        kind, config = hf.GPT2LMHeadModel, hf.GPT2Config(n_embd=64, n_layer=2, n_head=4, **SIZES)
    else:
        kind, config = hf.BartForConditionalGeneration, hf.BartConfig(
            d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128,
            decoder_start_token_id=2, forced_eos_token_id=2, **SIZES,
        )  # fmt: skip
    return kind(config).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    for family in ("llama", "gpt2", "bart"):
        fresh(family).save_pretrained(root / family)
    return {family: root / family for family in ("llama", "gpt2", "bart")}


def quantised(folder: Path, kind: str, *, packs: bool = False):
    """A quantised base; packs: whether passes without gradients may pack its matrices anew."""
    dtype = torch.float32
    config = quantisation_config(kind, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maker = type(fresh(folder.name))
        model = maker.from_pretrained(folder, dtype=dtype, quantization_config=config).eval()
    if not packs:
        keep_layout(model.modules())
    return model


def numbers_of(model) -> list[torch.Tensor]:
    """The numbers that the base's quantised matrices stand for."""
    return [dequantised(module) for module in quantised_modules(model).values()]


@every_kind
@pytest.mark.parametrize("family", ["llama", "gpt2", "bart"])
def test_the_numbers_of_a_quantised_matrix(folders, family, kind):
    plain, model = fresh(family), quantised(folders[family], kind)
    modules = quantised_modules(model)
    assert bool(modules) != (family == "gpt2" and "torchao" in kind)  # it leaves Conv1D alone
    for path, module in modules.items():
        assert quantisation(module) == KINDS[kind]
        original = plain.get_submodule(path).weight
        matrix = dequantised(module)
        if family == "gpt2":  # its Conv1D holds it transposed
            original = original.T
        assert matrix.shape == original.shape
        worst = {"int8": 1 / 254, "nf4": 0.16, "torchao-int8": 1 / 254, "torchao-int4": 1 / 14}
        rounding = 1.1 * worst[kind] * original.abs().max()
        assert (matrix - original).abs().max() <= rounding
        x = torch.randn(3, matrix.shape[1])
        expected = x @ matrix.T + (0 if module.bias is None else module.bias)
        torch.testing.assert_close(module(x), expected, rtol=0.02, atol=0.02)


@every_kind
@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_methods_learn_and_leave_the_base_alone(folders, spec, kind, tmp_path):
    model = quantised(folders["llama"], kind)
    inputs = exact.batch("llama")
    bare = exact.run(model, inputs)
    before = numbers_of(model)
    handle = inlay.attach(model, spec)
    if spec.identity and getattr(spec, "start", None) != "principal":
        torch.testing.assert_close(exact.run(model, inputs), bare, rtol=0, atol=1e-4)
    exact.run(model, inputs)  # a pass without gradients, as an evaluation before training
    model(**inputs).logits.float().square().mean().backward()
    perturb(handle)
    model(**inputs).logits.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in handle.parameters())
    assert all(p.grad is None for n, p in model.named_parameters() if "inlays" not in n)
    path = handle.save(tmp_path / "x.safetensors")
    moved = exact.run(model, inputs)
    other = quantised(folders["llama"], kind)
    inlay.load(other, path)
    assert torch.equal(exact.run(other, inputs), moved)
    handle.detach()
    assert torch.equal(exact.run(model, inputs), bare)
    after = numbers_of(model)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@every_kind
def test_gradients_are_those_of_the_numbers(folders, kind):
    """As in a base of ordinary matrices with the same numbers."""
    model = quantised(folders["llama"], kind)
    plain = fresh("llama")
    with torch.no_grad():
        for path, module in quantised_modules(model).items():
            plain.get_submodule(path).weight.copy_(dequantised(module))
    inputs, gradients = exact.batch("llama"), []
    for base in (model, plain):
        torch.manual_seed(3)
        handle = inlay.attach(base, inlay.LoRA(rank=2))
        perturb(handle)
        exact.run(base, inputs)
        base(**inputs).logits.float().square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in handle.parameters()]))
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert error < (0.03 if kind == "int8" else 1e-3)  # int8 rounds what enters a matrix


def test_a_packed_layout_without_gradients_is_undone(folders):
    """On some processors a pass without gradients packs 4-bit matrices, once and for all."""
    model = quantised(folders["llama"], "nf4", packs=True)
    inputs = exact.batch("llama")
    exact.run(model, inputs)  # packs where the processor can
    handle = inlay.attach(model, inlay.LoRA(rank=2))
    perturb(handle)
    exact.run(model, inputs)
    model(**inputs).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in handle.parameters())
    modules = quantised_modules(model).values()
    supported = [module.support_avx512bf16_for_cpu for module in modules]
    assert not any(supported)
    handle.detach()
    fresh = quantised(folders["llama"], "nf4", packs=True)
    now = [module.support_avx512bf16_for_cpu for module in quantised_modules(model).values()]
    assert now == [m.support_avx512bf16_for_cpu for m in quantised_modules(fresh).values()]


@without_torchao
def test_a_base_that_loses_gradients_is_refused(folders):
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    model = AutoModelForCausalLM.from_pretrained(folders["llama"], quantization_config=config)
    with pytest.raises(SpecError, match="gradients get lost"):
        inlay.attach(model, inlay.LoRA(rank=2))
    assert not inlay.attached(model)


@every_kind
def test_files_of_one_base_are_told_from_those_of_the_other(folders, kind, tmp_path):
    model, plain = quantised(folders["llama"], kind), fresh("llama")
    of_quantised = inlay.attach(model, inlay.LoRA(rank=2)).save(tmp_path / "q.safetensors")
    of_plain = inlay.attach(plain, inlay.LoRA(rank=2)).save(tmp_path / "p.safetensors")
    with pytest.raises(BaseError, match=f"on this base quantised to {KINDS[kind]}, and here it is"):
        inlay.load(plain, of_quantised, name="q")
    with pytest.raises(BaseError, match="on this base unquantised"):
        inlay.load(model, of_plain, name="p")
    inlay.load(plain, of_quantised, name="q", strict=False)
    other = copy.deepcopy(fresh("llama"))
    other.model.norm.weight.data.add_(1)
    with pytest.raises(BaseError, match="another base"):
        inlay.load(other, of_quantised)


@every_kind
def test_merging_is_refused_or_dequantises(folders, kind, tmp_path):
    model = quantised(folders["llama"], kind)
    handle = inlay.attach(model, inlay.LoRA(rank=2, at=("attn.q", "mlp.down")))
    perturb(handle)
    inputs = exact.batch("llama")
    before = exact.run(model, inputs)
    with pytest.raises(QuantisedError, match="dequantise=True"):
        handle.merge()
    assert handle.attached and torch.equal(exact.run(model, inputs), before)
    merged = handle.merge(dequantise=True)
    assert not quantised_modules(merged)
    torch.testing.assert_close(exact.run(merged, inputs), before, rtol=0.05, atol=0.05)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(exact.run(again, inputs), exact.run(merged, inputs))


def test_unknown_names():
    assert set(KINDS) == set(QUANTISATIONS)
    with pytest.raises(FetchError, match="did you mean 'nf4'"):
        quantisation_config("nf5", torch.float32)


@every_kind
@pytest.mark.parametrize("method", [inlay.FISH(at="attn.q"), inlay.FAR(at="mlp.up")], ids=repr)
def test_methods_that_need_gradients_of_the_base_refuse(folders, method, kind):
    model = quantised(folders["llama"], kind)
    sites = [site for site in resolve(model).sites if site.role in method.at.roles]
    with pytest.raises(SpecError, match="quantised; open the base without quantisation"):
        method.prepare(model, sites, [])
