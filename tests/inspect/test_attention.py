"""How much attention prompts and prefixes get."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import inlay
from inlay import IA3, Prefix, Prompt, PTuning, Where
from inlay.errors import PortError
from inlay.inspect import attention_shares, prefix_keys
from inlay.inspect.recorder import AttentionRecorder
from inlay.runtime.container import stack_hooks
from tests import zoo
from tests.inspect.models import START, batch, fresh


def test_the_share_is_what_a_hand_computes():
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**{**zoo.GQA, "num_hidden_layers": 1})).eval()
    handle = inlay.attach(model, Prefix(length=3, mlp=None))
    with torch.no_grad():
        for parameter in handle.parameters():
            parameter.normal_()
    (_, _, k, _) = prefix_keys(handle)[0]
    inputs = batch(model, 6, 4)
    (share,) = attention_shares(handle, [inputs])

    layer, width = model.model.layers[0], 8
    total, even, count = torch.zeros(4), 0.0, 0
    with torch.no_grad():
        for ids, length in zip(inputs["input_ids"], (6, 4), strict=True):
            x = layer.input_layernorm(model.model.embed_tokens(ids[None, :length]))
            q = layer.self_attn.q_proj(x).view(1, length, 4, width).transpose(1, 2)
            text = layer.self_attn.k_proj(x).view(1, length, 2, width).transpose(1, 2)
            turns = model.model.rotary_emb(x, torch.arange(length)[None])
            q, text = apply_rotary_pos_emb(q, text, *turns)
            for head in range(4):
                for at in range(length):
                    seen = torch.cat((k[head // 2], text[0, head // 2, : at + 1]))
                    weights = (seen @ q[0, head, at] / width**0.5).softmax(0)
                    total[head] += weights[:3].sum()
            even += sum(3 / (3 + at + 1) for at in range(length))
            count += length
    assert (share.kind, share.attention, share.layers) == ("prefix", "decoder.attn", (0,))
    assert share.shares.shape == (1, 4)
    assert torch.allclose(share.shares[0], total / count, atol=1e-5)
    assert float(share.uniform) == pytest.approx(even / count)
    assert float(share.shares.std()) > 1e-3


@pytest.mark.parametrize(("family", "first"), [("llama", 0), ("bert", 1), ("gemma3", 0)])
def test_a_prompt_gets_what_its_words_would_get(family, first):
    model = fresh(family)
    inputs = batch(model, 9)
    handle = inlay.attach(model, Prompt(length=3, start=START))
    (share,) = attention_shares(handle, [inputs])
    handle.detach()
    model.set_attn_implementation("eager")
    ids = inputs["input_ids"][0].tolist()
    ids = torch.tensor([[*ids[:first], 5, 17, 40, *ids[first:]]])
    weights = torch.cat(model(input_ids=ids, output_attentions=True).attentions)
    prompt = weights[..., first : first + 3].sum(-1)
    text = [n for n in range(12) if not first <= n < first + 3]
    assert torch.allclose(share.shares, prompt[..., text].mean(-1), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt2", "bert", "t5", "bart"])
def test_padding_and_neighbours_in_a_batch_change_nothing(family):
    model = fresh(family)
    spec = Prefix(length=2, mlp=None) + Prompt(length=3)
    if model.config.is_encoder_decoder:
        spec = spec + Prompt(length=2, at="embed.target")
    handle = inlay.attach(model, spec)
    lengths = (9, 4)
    whole = batch(model, *lengths)
    together = attention_shares(handle, [whole])
    rows = [
        {name: t[n : n + 1, :length] for name, t in whole.items()}
        for n, length in enumerate(lengths)
    ]
    apart = attention_shares(handle, rows)
    alone = [attention_shares(handle, [row]) for row in rows]
    assert len(together) == len(apart) == (6 if model.config.is_encoder_decoder else 2)
    for a, b, long, short in zip(together, apart, *alone, strict=True):
        assert (a.kind, a.attention) == (b.kind, b.attention)
        assert torch.allclose(a.shares, b.shares, atol=1e-5)
        assert torch.allclose(a.uniform, b.uniform, atol=1e-5)
        assert torch.allclose((9 * long.shares + 4 * short.shares) / 13, a.shares, atol=1e-5)
        assert bool((a.shares > 0).all()) and bool((a.shares < 1).all())


@pytest.mark.parametrize("family", ["bert", "bart"])
@pytest.mark.parametrize(("push", "share"), [(-100, 0), (100, 1)])
def test_keys_pushed_far_away_get_nothing_or_everything(family, push, share):
    model = fresh(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("query.bias", "q_proj.bias")):
                parameter.fill_(10)  # every query points where the keys are pushed along
    handle = inlay.attach(model, Prefix(length=2, mlp=None))
    with torch.no_grad():
        for _, _, piece in zoo.pieces(handle):
            piece.k.fill_(push)
    shares = attention_shares(handle, [batch(model, 7, 5)])
    sides = {"bert": ["encoder.attn"], "bart": ["encoder.attn", "decoder.attn", "decoder.cross"]}
    assert sorted(measured.attention for measured in shares) == sorted(sides[family])
    for measured in shares:
        assert torch.allclose(measured.shares, torch.full_like(measured.shares, share), atol=1e-4)


def test_no_rounding_makes_a_share_more_than_all():
    handle = inlay.attach(zoo.fresh("bert"), Prefix(length=5, mlp=None))
    recorder = AttentionRecorder(handle)
    recorder.begin({"input_ids": torch.ones(1, 1, dtype=torch.long)})
    weights = torch.full((1, 4, 1, 6), 0.2, dtype=torch.bfloat16)  # five are more than 1
    assert float(weights[0, 0, 0, :5].float().sum()) > 1
    recorder.add("encoder.0.attn.kv", weights, None)
    assert recorder.shares(handle.chart)[0].shares.tolist() == [[1] * 4]


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_a_prefix_that_nobody_hears_takes_nothing_from_a_prompt(family):
    model = fresh(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("query.bias", "q_proj.bias")):
                parameter.fill_(10)
    inputs = batch(model, 7, 5)
    handle = inlay.attach(model, Prompt(length=3, start=START))
    alone = attention_shares(handle, [inputs])
    handle.detach()
    handle = inlay.attach(model, Prompt(length=3, start=START) + Prefix(length=2, mlp=None))
    with torch.no_grad():
        for key, _, piece in zoo.pieces(handle):
            if key.endswith("/1"):
                piece.k.fill_(-100)
    shares = [
        measured for measured in attention_shares(handle, [inputs]) if measured.kind == "prompt"
    ]
    assert len(shares) == len(alone)
    for measured, expected in zip(shares, alone, strict=True):
        assert measured.attention == expected.attention
        assert torch.allclose(measured.shares, expected.shares, atol=1e-4)


def test_layers_without_a_prefix_are_not_in_the_map():
    where = Where(("attn.kv",), layers=(0, 2))
    handle = inlay.attach(zoo.fresh("llama"), Prefix(length=2, mlp=None, at=where))
    (share,) = attention_shares(handle, [batch(handle.model, 5)])
    assert share.layers == (0, 2)
    assert share.shares.shape == (2, 4)


def test_looking_leaves_no_trace_and_sees_one_inlay():
    model = fresh("llama")
    handle = inlay.attach(model, Prefix(length=2, mlp=None))
    inputs = batch(model, 9, 9)
    alone = attention_shares(handle, [inputs])
    inlay.attach(model, Prefix(length=3, mlp=None) + Prompt(length=2) + IA3(), name="other")
    handle.enabled = False
    before = model(**inputs).logits
    implementation = model.config._attn_implementation
    shares = attention_shares(handle, [inputs])
    assert torch.equal(model(**inputs).logits, before)
    assert not handle.enabled
    assert model.config._attn_implementation == implementation
    assert not model.training
    assert [measured.kind for measured in shares] == ["prefix"]
    assert torch.equal(shares[0].shares, alone[0].shares)


def test_no_trace_either_where_a_pass_fails():
    model = fresh("llama")
    handle = inlay.attach(model, Prompt(length=2))
    implementation = model.config._attn_implementation
    with pytest.raises(IndexError):
        attention_shares(handle, [{"input_ids": torch.tensor([[1000]])}])
    (stack,) = stack_hooks(handle.model)
    assert stack.prefix.enabled
    assert stack.extra_kv.attention_pass.observer is None
    assert model.config._attn_implementation == implementation


def test_attention_without_a_way_in_is_not_measured():
    handle = inlay.attach(zoo.fresh("gptj"), Prompt(length=2))
    assert attention_shares(handle, [batch(handle.model, 5)]) == []


def test_a_model_of_images_is_refused():
    handle = inlay.attach(zoo.fresh("vit"), Prefix(length=2, mlp=None))
    with pytest.raises(PortError, match="ViT"):
        attention_shares(handle, [])


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_virtual_tokens_are_a_prompt_wherever_they_stand(family):
    model = fresh(family)
    handle = inlay.attach(model, PTuning(length=2, encoder=None, start=((5,), (17,))))
    inputs = batch(model, 8)
    inputs["input_ids"][0, [2, 5]] = torch.tensor([99, 100])
    shares = attention_shares(handle, [inputs])
    assert attention_shares(handle, [batch(model, 8)]) == []
    handle.detach()
    model.set_attn_implementation("eager")
    inputs["input_ids"][0, [2, 5]] = torch.tensor([5, 17])
    out = model(**inputs, output_attentions=True)
    queries = [0, 1, 3, 4, 6, 7]
    if family == "t5":
        maps = [(out.encoder_attentions, queries), (out.cross_attentions, slice(None))]
    else:
        maps = [(out.attentions, queries)]
    for measured, (weights, text) in zip(shares, maps, strict=True):
        assert measured.kind == "prompt"
        expected = torch.cat(weights)[..., [2, 5]].sum(-1)[..., text].mean(-1)
        assert torch.allclose(measured.shares, expected, atol=1e-5)
