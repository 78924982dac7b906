"""The way into attention: another way to attend for short texts while a bf16 base learns."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import inlay
from inlay import LoRA, Prefix
from inlay.architectures.resolve import resolve
from inlay.runtime import attention, short_attention
from inlay.runtime.extra_kv import AttentionPass, SiteExtraKV
from inlay.runtime.port import StackState
from inlay.runtime.routing import Routing
from tests import zoo
from tests.zoo import fresh

HALF = torch.bfloat16
SPEC = LoRA(rank=2)


@pytest.fixture
def calls(monkeypatch):
    """The precision of the queries of every call of `attend`."""
    seen = []
    real = short_attention.attend
    monkeypatch.setattr(
        short_attention,
        "attend",
        lambda q, *args, **how: seen.append(q.dtype) or real(q, *args, **how),
    )
    return seen


def adapted(dtype=HALF, spec=SPEC, family="llama"):
    model = fresh(family).to(dtype).eval()
    torch.manual_seed(0)
    handle = inlay.attach(model, spec)
    for parameter in handle.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model, handle


def text(length, rows=2, padded=False):
    ids = torch.randint(4, 60, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


def gradients(model, handle, inputs):
    model(**inputs).logits.float().square().mean().backward()
    flat = torch.cat([p.grad.float().flatten() for p in handle.parameters()])
    for parameter in handle.parameters():
        parameter.grad = None
    return flat


def drawn(heads=6, kept=2, length=7, keys=7, width=16, rows=3):
    draw = torch.Generator().manual_seed(0)
    shapes = [(rows, heads, length, width), (rows, kept, keys, width), (rows, kept, keys, width)]
    return [torch.randn(shape, generator=draw).to(HALF) for shape in shapes]


def by_hand(q, k, v, mask=None, is_causal=False, scale=None):
    """The definition, in double precision."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        scores = scores + mask.double()
    return scores.softmax(-1) @ v


def seen(*shape):
    """A mask in which every query sees the first key, and others by chance."""
    chance = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.5
    chance[..., 0] = True
    return chance


CASES = {
    "no mask": {},
    "causal": {"is_causal": True},
    "causal, more keys than queries": {"is_causal": True, "keys": 11},
    "scale": {"scale": 0.7},
    "rows": {"mask": seen(3, 1, 1, 9), "keys": 9},
    "rows and queries": {"mask": seen(3, 1, 7, 7)},
    "queries alone": {"mask": seen(7, 7)},
    "heads": {"mask": seen(1, 6, 7, 7)},
    "added": {"mask": torch.randn(1, 6, 7, 7, generator=torch.Generator().manual_seed(3)).to(HALF)},
    "added to rows": {"mask": torch.randn(3, 1, 7, 7, generator=torch.Generator().manual_seed(4))},
    "no groups": {"kept": 6, "is_causal": True},
    "one key for all heads": {"kept": 1, "mask": seen(3, 6, 7, 7)},
}


@pytest.mark.parametrize("at_once", [2**20, 1], ids=["at once", "row by row"])
@pytest.mark.parametrize("case", CASES)
def test_attention_and_its_gradients_are_those_of_the_definition(case, at_once, monkeypatch):
    monkeypatch.setattr(short_attention, "CACHED", at_once)
    how = dict(CASES[case])
    sizes = {name: how.pop(name) for name in ("kept", "keys") if name in how}
    given = drawn(**sizes)
    weights = torch.randn(3, 6, 7, 16, generator=torch.Generator().manual_seed(1)).to(HALF)
    exact = [t.double().requires_grad_() for t in given]
    right = by_hand(*exact, **how)
    ours = [t.clone().requires_grad_() for t in given]
    output = short_attention.attend(*ours, how.pop("mask", None), **how)
    assert output.dtype == HALF
    pairs = [(output, right)]
    pairs += zip(
        torch.autograd.grad(output, ours, weights),
        torch.autograd.grad(right, exact, weights.double()),
        strict=True,
    )
    for one, other in pairs:
        assert one.shape == other.shape
        assert (one - other).norm() <= 0.006 * other.norm()


@pytest.mark.parametrize("added", [False, True])
def test_a_query_that_sees_nothing_is_given_nothing_as_by_torch(added):
    mask = torch.ones(3, 1, 7, 7, dtype=torch.bool)
    mask[0, :, 2] = False
    if added:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    found = []
    for kind, how in (
        (HALF, short_attention.attend),
        (torch.float32, F.scaled_dot_product_attention),
    ):
        given = [t.to(kind).requires_grad_() for t in drawn(kept=6)]
        output = how(*given, mask)
        assert not output[0, :, 2].any()
        output.float().square().sum().backward()
        found.append(torch.cat([t.grad.float().flatten() for t in given]))
    ours, theirs = found
    assert (ours - theirs).norm() <= 0.02 * theirs.norm()


def test_only_short_texts_that_learn_in_bf16_go_this_way(calls, monkeypatch):
    model, handle = adapted()
    model(**text(6))
    assert calls == [HALF] * 3
    calls.clear()
    with torch.no_grad():
        model(**text(6))
    with torch.autocast("cpu", dtype=HALF):
        model(**text(6))
    with monkeypatch.context() as patch:
        patch.setattr(short_attention, "SHORT", 35)
        model(**text(6))
    adapted(torch.float32)[0](**text(6))
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    model.train()(**text(6))
    assert not calls
    handle.detach()
    model.eval().requires_grad_(True)(**text(6))
    assert not calls


def test_a_mask_that_learns_stays_with_torch(calls):
    q, k, v = (t.requires_grad_() for t in drawn(kept=6))
    mask = torch.zeros(1, 6, 7, 7, dtype=HALF, requires_grad=True)
    with short_attention.Short(k, v):
        F.scaled_dot_product_attention(q, k, v, mask).float().sum().backward()
    assert mask.grad is not None
    assert not calls
    with short_attention.Short(k, v):
        F.scaled_dot_product_attention(q, k, v, mask.detach())
    assert calls == [HALF]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("spec", [LoRA(rank=2), Prefix(length=3, mlp=None)], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma3", "t5", "bart", "bert"])
def test_gradients_are_as_near_to_those_of_fp32(family, spec, padded, calls, monkeypatch):
    inputs = text(9, rows=4, padded=padded)
    if family in ("t5", "bart"):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    exact = gradients(*adapted(torch.float32, spec, family), inputs)
    ours = gradients(*adapted(HALF, spec, family), inputs)
    assert calls
    monkeypatch.setattr(short_attention, "SHORT", 0)
    plain = gradients(*adapted(HALF, spec, family), inputs)
    assert not torch.equal(ours, plain)
    assert (ours - exact).norm() <= 1.25 * (plain - exact).norm()


def attending():
    """A module as transformers' attention function reads it, that takes extra keys and has none."""
    core = torch.nn.Module()
    core.num_key_value_groups, core.is_causal = 3, True
    chart = resolve(zoo.model("llama"))
    state = StackState(chart, chart.stacks[0], Routing(), None)
    site = next(site for site in chart.sites if site.heads)
    setattr(core, attention.EXTRA_KV, SiteExtraKV(site, state, AttentionPass()))
    return core


def test_the_empty_end_of_a_static_cache_is_not_seen(calls):
    q, k, v = drawn(length=5, keys=9)
    q.requires_grad_()
    whole, _ = attention._attention(sdpa_attention_forward, attending(), q, k, v, None)
    short, _ = attention._attention(
        sdpa_attention_forward, attending(), q, k[:, :, :5], v[:, :, :5], None
    )
    assert len(calls) == 2
    assert torch.equal(whole, short)


def test_gradients_of_one_attention_are_nearer_than_torchs(monkeypatch):
    core = attending()
    given = drawn(length=100, keys=100, width=64)
    weights = torch.randn(3, 100, 6, 64, generator=torch.Generator().manual_seed(1)).to(HALF)

    def back(dtype):
        inputs = [t.to(dtype).requires_grad_() for t in given]
        output, _ = attention._attention(sdpa_attention_forward, core, *inputs, None, scaling=0.25)
        assert output.dtype == dtype
        output.backward(weights.to(dtype))
        return [t.grad.float() for t in inputs]

    exact, ours = back(torch.float32), back(HALF)
    monkeypatch.setattr(short_attention, "SHORT", 0)
    plain = back(HALF)
    errors = [
        ((one - right).norm() / right.norm(), (other - right).norm() / right.norm())
        for right, one, other in zip(exact, ours, plain, strict=True)
    ]
    assert all(one <= 0.004 for one, _ in errors)
    assert sum(one for one, _ in errors) < sum(other for _, other in errors)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_attend_again_in_the_same_way(reentrant, calls):
    spec = Prefix(length=3, mlp=None) + LoRA(rank=2)
    exact = gradients(*adapted(torch.float32, spec), text(6))
    model, handle = adapted(spec=spec)
    model.train()
    plain = gradients(model, handle, text(6))
    once = len(calls)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    again = gradients(model, handle, text(6))
    assert len(calls) == once * (2 if reentrant else 3)
    if reentrant:  # its first pass runs without gradient, so through torch's attention
        assert (again - exact).norm() <= 1.5 * (plain - exact).norm()
    else:
        assert torch.equal(again, plain)


@pytest.mark.parametrize("padded", [False, True])
def test_shared_keys_are_not_repeated(padded, monkeypatch):
    """With a mask transformers copies them for every query head."""
    heads = []
    real = short_attention.attend
    monkeypatch.setattr(
        short_attention,
        "attend",
        lambda q, k, *args, **how: heads.append(k.shape[1]) or real(q, k, *args, **how),
    )
    model, handle = adapted(spec=Prefix(length=3, mlp=None) + SPEC)
    gradients(model, handle, text(9, padded=padded))
    assert heads == [model.config.num_key_value_heads] * 3 == [2] * 3


def test_every_way_of_torch_into_attention_is_open(monkeypatch):
    """What a later transformers calls by another name would go unnoticed otherwise."""
    mapping = ALL_ATTENTION_FUNCTIONS._global_mapping
    asked = []

    def spy(module, query, *args, **kwargs):
        asked.append(query.requires_grad)
        return sdpa_attention_forward(module, query, *args, **kwargs)

    monkeypatch.setitem(mapping, "inlay_sdpa", partial(attention._attention, spy))
    taken = []
    monkeypatch.setattr(short_attention, "fits", lambda *args, **how: taken.append(1) and False)
    adapted()[0](**text(6))
    assert len(asked) == len(taken) == 3
