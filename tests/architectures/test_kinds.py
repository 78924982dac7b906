"""Kinds of blocks: experts, latent attention, mixers, interleaved projections, several streams."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
import transformers as hf
from torch import nn

import inlay
from inlay.architectures.discover_block import is_plain_norm, places_of
from inlay.architectures.resolve import resolve
from inlay.core.site import plain_role
from inlay.errors import PortError, SiteError
from tests import zoo

IDS = torch.tensor([[5, 17, 40, 8, 63, 22, 71]])
LATENT = {"attn.q_a", "attn.q_b", "attn.kv_a", "attn.kv_b", "attn.o", "attn", "attn.kv"}
GATED = {"mlp.gate", "mlp.up", "mlp.down", "mlp"}
EXPERTS = {"mlp", "mlp.router", "mlp.experts.gate", "mlp.experts.up", "mlp.experts.down"}
SHARED = {"mlp.shared.gate", "mlp.shared.up", "mlp.shared.down"}
ATTENTION = {"attn.q", "attn.k", "attn.v", "attn.o", "attn", "attn.kv"}
NORMS = {"norm.attn", "norm.mlp", "block"}
LINEAR = {"mixer", "mixer.qkvz", "mixer.ba", "mixer.out", "norm.mixer"}


@pytest.mark.parametrize(
    ("family", "layer", "roles"),
    [
        ("mixtral", 0, ATTENTION | EXPERTS | NORMS),
        ("deepseek_v3", 0, LATENT | GATED | NORMS),
        ("deepseek_v3", 1, LATENT | EXPERTS | SHARED | NORMS),
        ("qwen3_next", 0, LINEAR | EXPERTS | SHARED | {"norm.mlp", "block"}),
        ("qwen3_next", 1, ATTENTION | EXPERTS | SHARED | NORMS),
        ("mamba2", 0, {"mixer", "mixer.in", "mixer.out", "norm.mixer", "block"}),
        ("falcon", 0, ATTENTION | {"mlp.up", "mlp.down", "mlp", "norm.attn", "block"}),
        ("bloom", 0, ATTENTION | {"mlp.up", "mlp.down", "mlp"} | NORMS),
        ("gemma3n", 0, ATTENTION | GATED | {"norm.attn", "norm.mlp"}),
    ],
)
def test_what_a_block_has(family, layer, roles):
    chart = resolve(zoo.model(family))
    assert {site.role for site in chart.sites if site.layer == layer} == roles


def jamba():
    config = hf.JambaConfig(
        **{**zoo.GQA, "num_experts": 4, "attn_layer_period": 3, "attn_layer_offset": 1},
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
    )
    return hf.JambaForCausalLM(config)


def test_blocks_of_several_classes_in_one_list():
    chart = resolve(jamba())
    (stack,) = chart.stacks
    assert len({type(block) for block in stack.layers}) == 2
    mixers = [site.layer for site in chart.sites if site.role == "mixer"]
    attentions = [site.layer for site in chart.sites if site.role == "attn"]
    assert (mixers, attentions) == ([0, 2], [1])


def test_experts_in_all_are_counted_one_by_one():
    chart = resolve(zoo.model("mixtral"))
    counts = Counter(site.role for site in chart.sites)
    assert counts["mlp.experts.down"] == 2 * 4
    site = next(site for site in chart.sites if site.role == "mlp.experts.up")
    assert site.name == "decoder.0.mlp.experts.0.up"
    assert plain_role(site.role) == "mlp.up"
    experts = zoo.model("mixtral").model.layers[0].mlp.experts
    assert torch.equal(site.weight(), experts.gate_up_proj[0, 48:])


def test_a_plain_role_means_experts_too():
    model = zoo.model("deepseek_v3")
    roles = {site.role for site in resolve(model).find(inlay.core.site.Where(("mlp.down",)))}
    assert roles == {"mlp.down", "mlp.experts.down", "mlp.shared.down"}


def falcons():
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 99}
    return {
        "one key-value head": hf.FalconConfig(**shape),
        "two key-value heads": hf.FalconConfig(
            **shape, num_kv_heads=2, new_decoder_architecture=True
        ),
        "four key-value heads": hf.FalconConfig(**shape, multi_query=False),
    }


@pytest.mark.parametrize("kind", falcons())
def test_what_falcon_splits_is_what_the_sites_hold(kind):
    model = hf.FalconForCausalLM(falcons()[kind])
    attention = model.transformer.h[0].self_attention
    fused = torch.randn(1, 3, attention.query_key_value.out_features)
    query, key, value = attention._split_heads(fused)
    sites = {site.role: site for site in resolve(model).sites if site.layer == 0}
    keys = attention.num_kv_heads
    repeats = key.shape[2] // keys  # several queries read the same key
    for role, split in (("q", query), ("k", key[:, :, ::repeats]), ("v", value[:, :, ::repeats])):
        site = sites[f"attn.{role}"]
        assert torch.equal(site.part.take(fused), split.flatten(2))
    assert sites["attn.kv"].heads == keys


@pytest.mark.parametrize("multi_query", [True, False])
def test_what_bigcode_splits(multi_query):
    config = hf.GPTBigCodeConfig(
        n_embd=32, n_layer=1, n_head=4, vocab_size=99, n_positions=32, multi_query=multi_query
    )
    sites = {s.role: s for s in resolve(hf.GPTBigCodeForCausalLM(config)).sites if s.layer == 0}
    heads = 1 if multi_query else 4
    assert (sites["attn.kv"].heads, sites["attn.q"].d_out) == (heads, 32)
    assert sites["attn.q"].part.count == heads
    assert sites["attn.k"].d_out == sites["attn.v"].d_out == 8 * heads


@pytest.mark.parametrize("role", ["attn.q", "attn.k", "attn.v"])
def test_lora_on_a_part_of_an_interleaved_projection_is_the_update_of_its_rows(role):
    model = zoo.fresh("bloom")
    handle = inlay.attach(model, inlay.LoRA(rank=2, at=role))
    for parameter in handle.parameters():
        parameter.data.normal_(0, 0.3)
    number = ("attn.q", "attn.k", "attn.v").index(role)
    base = zoo.fresh("bloom")
    for placed in handle.placed:
        attention = base.transformer.h[placed.site.layer].self_attention
        update = placed.piece.scale * placed.piece.b.detach() @ placed.piece.a.detach()
        rows = attention.query_key_value.weight.data.view(4, 3, 8, 32)
        rows[:, number] += update.view(4, 8, 32)
    with torch.no_grad():
        assert torch.allclose(model(IDS).logits, base(IDS).logits, atol=1e-4)


def test_the_keys_and_values_of_latent_attention_differ_in_width():
    sites = [site for site in resolve(zoo.model("deepseek_v3")).sites if site.role == "attn.kv"]
    assert [(s.heads, s.head_dim, s.value_dim) for s in sites] == [(4, 10, 8)] * 2
    model = zoo.fresh("deepseek_v3")
    handle = inlay.attach(model, inlay.Prefix(length=3, mlp=5))
    assert {tuple(p.piece.export()["v"].shape) for p in handle.placed} == {(4, 3, 8)}


def test_a_prefix_that_starts_at_words_is_what_the_base_computes_for_them():
    """The first position of a causal base sees itself alone: as a prefix it changes nothing else."""
    model = zoo.fresh("deepseek_v3")
    with torch.no_grad():
        alone = model(torch.tensor([[7, *IDS[0].tolist()]])).logits[:, 1:]
    inlay.attach(model, inlay.Prefix(length=1, mlp=None, start=(7,), shifts=True))
    with torch.no_grad():
        assert torch.allclose(model(IDS).logits, alone, atol=1e-4)


class Odd(nn.Module):
    """A norm with a formula of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.eps = 1e-6

    def forward(self, x):
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)


class Gated(Odd):
    """A norm that reads a gate as well."""

    def forward(self, x, gate):
        return self.weight * x * gate


def test_only_what_computes_a_norm_is_taken_for_one():
    torch.manual_seed(0)
    rms = copy.deepcopy(zoo.model("qwen3_next").model.norm)  # it multiplies by one and a gain
    assert is_plain_norm(rms)
    assert is_plain_norm(copy.deepcopy(zoo.model("llama").model.norm))
    assert is_plain_norm(nn.LayerNorm(8))
    assert not is_plain_norm(Odd())
    assert not is_plain_norm(Gated())
    assert not is_plain_norm(nn.Linear(8, 8))


class Block(nn.Module):
    """Attention whose queries, keys and values are in one matrix, and experts in a list."""

    def __init__(self):
        super().__init__()
        self.attention = nn.Module()
        self.attention.qkv = nn.Linear(8, 24)
        self.attention.proj = nn.Linear(8, 8)
        self.moe = nn.Module()
        expert = nn.ModuleDict({"up_proj": nn.Linear(8, 12), "down_proj": nn.Linear(12, 8)})
        self.moe.experts = nn.ModuleList([expert, copy.deepcopy(expert)])


def test_what_cannot_be_split_or_told_apart_has_a_place_as_a_whole():
    places = places_of(Block())
    assert set(places.block) == {"attn.qkv", "attn.o", "attn", "mlp"}


@pytest.mark.parametrize(
    ("family", "spec", "message"),
    [
        ("mamba2", inlay.LoRA(), r"no 'attn.q' or 'attn.v'; use LoRA\(at=\('mixer.in', 'mixer.o"),
        ("mamba2", inlay.Houlsby(), r"use Houlsby\(at=\('mixer', 'norm.mixer'\)\)$"),
        ("mamba2", inlay.Parallel(), r"no 'mlp'; use Parallel\(at=\('mixer',\)\)$"),
        ("mamba2", inlay.Prefix(), "no 'attn.kv', nor another place for Prefix; use "),
        ("deepseek_v3", inlay.IA3(), r"use IA3\(at=\('attn.q_a', .*'mlp.down'\)\)$"),
        ("deepseek_v3", inlay.BitFit(), r"use BitFit\(at=\('attn.q_a', .*'norm.mlp'\)\)$"),
        ("llama", inlay.CrossAttention(), "nor another place for CrossAttention; use "),
        ("bloom", inlay.Prefix(), "LoRA, adapters and prompts work here"),
    ],
)
def test_a_refusal_names_what_works(family, spec, message):
    model = zoo.fresh(family)
    with pytest.raises(SiteError, match=message) as refusal:
        inlay.attach(model, spec)
    assert inlay.attached(model) == {}
    said = str(refusal.value)
    if "(at=" in said:
        cure = said.partition("use ")[2].rpartition(" or ")[2]
        inlay.attach(model, inlay.parse(cure)).detach()


def test_positions_without_ids_get_what_gemma_gives_images():
    model = zoo.fresh("gemma3n")
    handle = inlay.attach(model, inlay.Prompt(length=2))
    stack = model.model
    vectors = next(iter(handle.placed)).piece().detach()
    ids = torch.cat((torch.zeros(1, 2, dtype=torch.long), IDS), 1)  # 0 is the padding id
    with torch.no_grad():
        embeds = torch.cat((vectors[None], stack.embed_tokens(IDS)), 1)
        beside = stack.get_per_layer_inputs(ids)
        states = stack.forward(inputs_embeds=embeds, per_layer_inputs=beside).last_hidden_state
        expected = resolve(model).logits(model, states[:, 2:])
        assert torch.allclose(model(IDS).logits, expected, atol=1e-4)


def test_a_base_that_computes_something_else_without_ids_takes_no_prompt(monkeypatch):
    model = zoo.fresh("olmo2")
    kind = type(model.model)
    forward = kind.forward

    def by_ids(self, input_ids=None, inputs_embeds=None, **more):
        if input_ids is not None:
            inputs_embeds = 2 * self.embed_tokens(input_ids)
        return forward(self, inputs_embeds=inputs_embeds, **more)

    monkeypatch.setattr(kind, "forward", by_ids)
    for spec in (inlay.Prompt(length=2), inlay.PTuning(length=3)):
        with pytest.raises(
            PortError,
            match="computes something else from vectors than from ids; LoRA and adapters work",
        ):
            inlay.attach(model, spec)
    inlay.attach(model, inlay.LoRA(rank=2))


def test_a_stack_that_returns_other_states_of_its_positions_takes_no_prompt():
    """ProphetNet's decoder returns a stream for each token ahead; a prompt would stay in them."""
    sizes = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 32}
    sizes |= {"num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4}
    sizes |= {"num_encoder_layers": 2, "num_decoder_layers": 2}
    config = hf.ProphetNetConfig(vocab_size=99, hidden_size=32, **sizes, is_encoder_decoder=False)
    model = hf.ProphetNetForCausalLM(config)
    with pytest.raises(PortError, match="returns other states of its positions than the last"):
        inlay.attach(model, inlay.Prompt(length=2))
    inlay.attach(model, inlay.LoRA(rank=2))
    model(input_ids=IDS).logits.sum().backward()


def test_a_kernel_that_passes_the_output_projection_by_is_noticed(monkeypatch):
    model = zoo.fresh("mamba2")
    handle = inlay.attach(model, inlay.LoRA(rank=2, at="mixer.out"))
    kind = type(model.backbone.layers[0].mixer)

    def fused(self, hidden_states, **more):
        return self.in_proj(hidden_states)[..., :64] @ self.out_proj.weight.T

    forward = kind.forward
    monkeypatch.setattr(kind, "forward", fused)
    with pytest.raises(PortError, match=r"nothing can act at decoder\.0\.mixer\.out; use"):
        model(IDS)
    handle.enabled = False
    model(IDS)
    monkeypatch.setattr(kind, "forward", forward)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "qwen3_next", "mamba2", "gemma3n"])
def test_a_file_is_read_by_the_base_that_it_was_made_for(family, tmp_path):
    model = zoo.fresh(family)
    at = ("mlp.experts.down?", "mlp.router?", "mixer.in?", "attn.kv_b?", "attn.q?")
    handle = inlay.attach(model, inlay.LoRA(rank=2, at=at))
    for parameter in handle.parameters():
        parameter.data.normal_(0, 0.3)
    with torch.no_grad():
        expected = model(IDS).logits
    path = handle.save(tmp_path / "x.safetensors")
    other = zoo.fresh(family)
    inlay.load(other, path)
    with torch.no_grad():
        assert torch.equal(other(IDS).logits, expected)
