"""Reading a model: which sites each described family has, and what they are."""

import pytest
import torch
from torch import nn

from inlay.architectures.families import FAMILIES
from inlay.architectures.resolve import require_model, resolve
from inlay.core.site import ROLES
from inlay.errors import SiteError
from tests import zoo

ATTENTION = {"attn", "attn.q", "attn.k", "attn.v", "attn.o", "attn.kv", "norm.attn"}
CROSS = {"cross", "cross.q", "cross.k", "cross.v", "cross.o", "cross.kv", "norm.cross"}
MLP = {"mlp", "mlp.up", "mlp.down", "norm.mlp"}
BLOCK = ATTENTION | MLP | {"block"}
GATED = BLOCK | {"mlp.gate"}

DECODERS = {  # family -> roles in a block, roles outside the blocks
    "llama": (GATED, {"embed", "norm.final", "final", "head"}),
    "mistral": (GATED, {"embed", "norm.final", "final", "head"}),
    "qwen2": (GATED, {"embed", "norm.final", "final", "head"}),
    "qwen3": (GATED, {"embed", "norm.final", "final", "head"}),
    "gemma2": (GATED, {"embed", "norm.final", "final", "head"}),
    "gemma3": (GATED, {"embed", "norm.final", "final", "head"}),
    "phi3": (GATED, {"embed", "norm.final", "final", "head"}),
    "gpt2": (BLOCK, {"embed", "norm.final", "final", "head"}),
    "opt": (BLOCK, {"embed", "norm.final", "final", "head"}),
    "gpt_neox": (BLOCK, {"embed", "norm.final", "final", "head"}),
    "falcon": (BLOCK - {"norm.mlp"}, {"embed", "norm.final", "final", "head"}),
    "bloom": (BLOCK, {"embed", "norm.embed", "norm.final", "final", "head"}),
    "gemma3n": (GATED - {"block"}, {"embed", "norm.final", "final", "head"}),
}
DISCOVERED = {  # what they have is in test_kinds.py
    **dict.fromkeys(("gptj", "olmo2", "mixtral", "deepseek_v3", "qwen3_next", "mamba2"), "decoder"),
    "deberta": "encoder",
}
ENCODERS = {
    "bert": (BLOCK, {"embed", "norm.embed", "final", "head", "base_head"}),
    "roberta": (BLOCK, {"embed", "norm.embed", "final", "head", "base_head"}),
    "electra": (BLOCK, {"embed", "norm.embed", "final", "head", "base_head"}),
    "distilbert": (BLOCK, {"embed", "norm.embed", "final", "head", "base_head"}),
    # the first block of ModernBERT has no norm of its own before attention
    "modernbert": (GATED, {"embed", "norm.embed", "norm.final", "final", "head", "base_head"}),
    "vit": (BLOCK, {"norm.final", "final", "base_head"}),
    "clip-vision": (BLOCK, {"norm.embed", "final"}),
}
ENCODER_DECODERS = {  # family -> roles in an encoder's block, outside the blocks of both stacks
    "t5": (BLOCK, {"embed", "embed.target", "norm.final", "final", "final.target", "head"}),
    "t5-gated": (GATED, {"embed", "embed.target", "norm.final", "final", "final.target", "head"}),
    "mt5": (GATED, {"embed", "embed.target", "norm.final", "final", "final.target", "head"}),
    "bart": (BLOCK, {"embed", "embed.target", "norm.embed", "final", "final.target", "head"}),
    "marian": (BLOCK, {"embed", "embed.target", "final", "final.target", "head"}),
    # extra keys have no place where sound is read
    "whisper": (BLOCK - {"attn.kv"}, {"embed", "norm.final", "final", "final.target", "head"}),
}
DESCRIBED = {**DECODERS, **ENCODERS, **ENCODER_DECODERS}


def roles(chart, stack=None, layer=None):
    sites = [site for site in chart.sites if site.layer == layer]
    return {site.role for site in sites if stack in (None, site.stack)}


def test_the_table_holds_every_described_family():
    described = {name for name in zoo.FAMILIES if zoo.model(name).config.model_type in FAMILIES}
    assert described == set(DESCRIBED)


@pytest.mark.parametrize("family", DESCRIBED)
def test_a_described_family_has_its_sites(family):
    chart = resolve(zoo.model(family))
    block, outside = DESCRIBED[family]
    assert roles(chart) == outside
    last = len(chart.stacks[0].layers) - 1
    assert roles(chart, chart.stacks[0].name, last) == block
    if family in ENCODER_DECODERS:
        last = len(chart.stacks[1].layers) - 1
        assert roles(chart, "decoder", last) == block | CROSS | {"attn.kv"}


@pytest.mark.parametrize("family", DESCRIBED)
def test_every_block_of_a_stack_has_the_same_sites(family):
    chart = resolve(zoo.model(family))
    for stack in chart.stacks:
        own = [roles(chart, stack.name, layer) for layer in range(len(stack.layers))]
        first = own[0] | ({"norm.attn"} if family == "modernbert" else set())
        assert all(block == first for block in own[1:])


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_sites_are_named_once_and_by_role(family):
    chart = resolve(zoo.model(family))
    names = [site.name for site in chart.sites]
    assert len(set(names)) == len(names)
    assert all(site.role in ROLES for site in chart.sites)
    plain = [site for site in chart.sites if site.expert is None]
    assert all(site.name.endswith(site.role) for site in plain)
    experts = [site for site in chart.sites if site.expert is not None]
    parts = [(site.name.split("."), site) for site in experts]
    assert all([*p[2:4], p[5]] == site.role.split(".") for p, site in parts)
    assert all(p[4] == str(site.expert.number) for p, site in parts)


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_the_kind_of_a_base(family):
    kinds = {**dict.fromkeys(DECODERS, "decoder"), **dict.fromkeys(ENCODERS, "encoder")}
    kinds |= {**dict.fromkeys(ENCODER_DECODERS, "encoder-decoder"), "vit": "vision"}
    kinds |= DISCOVERED
    kinds |= {"clip-vision": "vision", "whisper": "audio-decoder"}
    kinds |= {"llava": "decoder", "wav2vec2": "audio"}
    chart = resolve(zoo.model(family))
    assert chart.kind == kinds[family]
    assert [stack.causal for stack in chart.stacks] == [
        stack.name == "decoder" for stack in chart.stacks
    ]
    keeps_first = kinds[family] in ("encoder", "vision", "audio")
    assert chart.stacks[0].keeps_first == keeps_first


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_a_projection_has_the_widths_of_its_matrix(family):
    projections = [site for site in resolve(zoo.model(family)).sites if site.is_projection]
    assert projections
    for site in projections:
        assert tuple(site.weight().shape) == (site.d_out, site.d_in)
        if site.expert is not None or site.inside:
            continue  # see test_experts.py
        x = torch.randn(2, 3, site.d_in)
        y = site.host(x)
        y = y if site.part is None else site.part.take(y)
        bias = site.bias()
        expected = x @ site.weight().T + (0 if bias is None else bias)
        assert torch.allclose(y, expected, atol=1e-4)


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_the_heads_of_attention(family):
    model = zoo.model(family)
    shared = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "llava"}
    key_heads = {
        **dict.fromkeys(shared | {"mixtral", "qwen3_next", "gemma3n"}, 2),
        "falcon": 1,
    }.get(family, 4)
    key_width = 10 if family == "deepseek_v3" else 8
    for site in resolve(model).sites:
        if site.role.endswith(".kv"):
            assert (site.heads, site.head_dim, site.value_dim) == (key_heads, key_width, 8)
            assert site.d_out == key_width * key_heads


@pytest.mark.parametrize(
    ("family", "window"), [("llama", None), ("mistral", 6), ("gemma3", 6), ("qwen2", None)]
)
def test_the_window_of_a_stack(family, window):
    assert resolve(zoo.model(family)).stacks[0].window == window


def test_positions_of_roberta_start_after_the_padding_id():
    assert resolve(zoo.model("roberta")).stacks[0].position_start == 2
    assert resolve(zoo.model("bert")).stacks[0].position_start == 0


@pytest.mark.parametrize("family", ["llama", "bert", "bart"])
def test_sites_do_not_depend_on_the_head(family):
    model = zoo.model(family)
    whole = {site.name: site.host for site in resolve(model).sites}
    bare = {site.name: site.host for site in resolve(model.base_model).sites}
    heads = {site.name for site in resolve(model).sites if site.role in ("head", "base_head")}
    assert bare == {name: host for name, host in whole.items() if name not in heads}


def test_an_encoder_whose_config_makes_it_a_decoder():
    model = zoo.fresh("bert")
    model.config.is_decoder = True
    (stack,) = resolve(model).stacks
    assert stack.causal
    assert not stack.keeps_first


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), "smollm2", None])
def test_what_is_no_model_is_refused(thing):
    with pytest.raises(SiteError, match=type(thing).__name__):
        require_model(thing)
    with pytest.raises(SiteError):
        resolve(thing)
