"""Attention in our own functions: short texts of a bf16 base in training on a CPU."""

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

pytestmark = pytest.mark.processor

HALF = torch.bfloat16
FP32 = torch.finfo(torch.float32).eps / 2
"""The unit roundoff of fp32."""
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


@pytest.fixture
def met(monkeypatch):
    """Of every call of `attend`: what it is given, and what torch's own function would have been."""
    seen = []
    real, way_in = short_attention.attend, short_attention.Short.__torch_function__

    def attend(*given, **how):
        seen[-1].append((given, how))
        return real(*given, **how)

    def function(self, func, types, args=(), kwargs=None):
        seen.append([(args, kwargs)])
        return way_in(self, func, types, args, kwargs)

    monkeypatch.setattr(short_attention, "attend", attend)
    monkeypatch.setattr(short_attention.Short, "__torch_function__", function)
    return seen


@pytest.fixture
def in_double(monkeypatch):
    """In double precision short texts go this way too, with nothing in it that is rounded to fp32.

    So gradients of whole bases can be compared: what two ways differ by is then far below what
    any base makes of it.
    """
    monkeypatch.setattr(
        attention, "in_training", lambda *given: any(t.requires_grad for t in given)
    )
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def adapted(dtype=HALF, spec=SPEC, family="llama"):
    model = fresh(family).to(dtype).eval()
    torch.manual_seed(0)
    handle = inlay.attach(model, spec)
    for parameter in handle.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    if dtype == torch.float64:
        model.double()  # the pieces too
    return model, handle


def text(length, rows=2, padded=False):
    ids = torch.randint(4, 60, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


def gradients(model, handle, inputs):
    model(**inputs).logits.double().square().mean().backward()
    flat = torch.cat([p.grad.double().flatten() for p in handle.parameters()])
    for parameter in handle.parameters():
        parameter.grad = None
    return flat


def near(ours, plain):
    """Whether two gradients in double precision agree.

    In half the digits of fp32, which some bases round single numbers to: whichever side of such a
    rounding one falls, it is off by 2^-24 at most, and the base can make 2^12 times as much of it.
    """
    return (ours - plain).norm() <= FP32**0.5 * plain.norm()


def drawn(heads=6, kept=2, length=7, keys=7, width=16, rows=3):
    draw = torch.Generator().manual_seed(0)
    shapes = [(rows, heads, length, width), (rows, kept, keys, width), (rows, kept, keys, width)]
    return [torch.randn(shape, generator=draw).to(HALF) for shape in shapes]


def bias_of(scores, mask, is_causal):
    """What is added to the scores, in double precision."""
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is None:
        return torch.zeros(())
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape).double().masked_fill(~mask, -math.inf)
    return mask.double()


def by_hand(q, k, v, mask=None, is_causal=False, scale=None):
    """The definition: the output, and P, all zeros for a query that sees nothing."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores + bias_of(scores, mask, is_causal)
    blind = scores.isneginf().all(-1, keepdim=True)
    p = scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
    return p @ v, p


def allowed(kind, p, q, k, v, up, mask=None, is_causal=False, scale=None):
    """How far `attend` may be off in the type `kind`, for every number of O and of dQ, dK and dV.

    All arguments are in double precision. What every kernel keeps to, in whatever order and in
    whatever blocks it adds up: a number rounded to `kind` is off by its unit roundoff u (2^-8 for
    bf16), and a sum of n products by n·w of the sum of their magnitudes, where w = 2^-24 is the
    unit roundoff of fp32, in which torch adds up products of bf16 numbers too.

    Rounded to `kind` are P and what comes out, 2 u of ΣP|V| and of ΣP|dO|; for dQ and dK P stands
    twice in dS = P (D - ΣPD), D = scale · dO Vᵀ, and dS itself is rounded: 4 u of their
    magnitudes. In fp32 a score is a sum of K products times the scale, plus the bias; it is the
    exponent of P, where its error counts twice, for the divisor has it too. The divisor and ΣPD
    are sums of S terms, D one of K, and the products that follow sums of S or of as many queries
    as share a key; 16 stands for single operations (exp, division, differences).
    """
    group = q.shape[1] // k.shape[1]
    q, k, v, up = (t.abs() for t in (q, k, v, up))
    k, v = (t.repeat_interleave(group, 1) for t in (k, v))
    scale = abs(q.shape[-1] ** -0.5 if scale is None else scale)
    scores = q @ k.mT * scale
    largest = float((scores + bias_of(scores, mask, is_causal).abs())[p > 0].max())
    width, keys, queries = q.shape[-1], k.shape[2], q.shape[2] * group
    sums = 2 * (width + 3) * largest + width + 3 * keys + queries + 16

    def times(count, magnitude):
        off = count * torch.finfo(kind).eps / 2 + sums * FP32
        return off / (1 - off) * magnitude + torch.finfo(kind).tiny

    def shared(gradient):
        return gradient.unflatten(1, (-1, group)).sum(2)

    d = up @ v.mT * scale
    slope = p * (d + (p * d).sum(-1, keepdim=True))
    return (
        times(2, p @ v),
        times(4, slope @ k),
        times(4, shared(slope.mT @ q)),
        times(2, shared(p.mT @ up)),
    )


def check(given, mask=None, **how):
    """That `attend` and its gradients are as near to the definition as their roundings let them."""
    ours = [t.detach().clone().requires_grad_() for t in given]
    exact = [t.detach().double().requires_grad_() for t in given]
    kind = ours[0].dtype
    output = short_attention.attend(*ours, mask, **how)
    right, p = by_hand(*exact, mask, **how)
    up = torch.randn(right.shape, generator=torch.Generator().manual_seed(1)).to(kind)
    assert output.dtype == kind
    found = (output, *torch.autograd.grad(output, ours, up))
    wanted = (right, *torch.autograd.grad(right, exact, up.double()))
    with torch.no_grad():
        bounds = allowed(kind, p, *exact, up.double(), mask, **how)
    for one, other, bound in zip(found, wanted, bounds, strict=True):
        assert one.shape == other.shape
        off = (one.double() - other).abs().detach()
        assert bool((off <= bound).all())


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


@pytest.mark.parametrize("kind", [HALF, torch.float32])
@pytest.mark.parametrize("at_once", [2**20, 1], ids=["at once", "row by row"])
@pytest.mark.parametrize("case", CASES)
def test_attention_and_its_gradients_are_those_of_the_definition(case, at_once, kind, monkeypatch):
    monkeypatch.setattr(short_attention, "CACHED", at_once)
    how = dict(CASES[case])
    sizes = {name: how.pop(name) for name in ("kept", "keys") if name in how}
    check([t.to(kind) for t in drawn(**sizes)], **how)


@pytest.mark.parametrize("kind", [HALF, torch.float32])
@pytest.mark.parametrize("added", [False, True])
def test_a_query_that_sees_nothing_is_given_nothing(added, kind):
    mask = torch.ones(3, 1, 7, 7, dtype=torch.bool)
    mask[0, :, 2] = False
    if added:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    given = [t.to(kind) for t in drawn(kept=6)]
    check(given, mask)
    for attend in (short_attention.attend, F.scaled_dot_product_attention):
        assert not attend(*given, mask)[0, :, 2].any()


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


FAMILIES = ["llama", "gemma3", "t5", "bart", "bert"]


def read_by(family, padded):
    inputs = text(9, rows=4, padded=padded)
    if family in ("t5", "bart"):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    return inputs


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("spec", [LoRA(rank=2), Prefix(length=3, mlp=None)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_attention_of_a_base_is_that_of_the_definition(family, spec, padded, met):
    """As torch's function would have been asked for it, of keys repeated where heads share them."""
    model, _ = adapted(HALF, spec, family)
    model(**read_by(family, padded))
    calls = [one for one in met if len(one) == 2]
    assert calls
    for (theirs, asked), (ours, how) in calls:
        for their, own in zip(theirs[1:], ours[1:], strict=True):
            assert torch.equal(their, own.repeat_interleave(their.shape[1] // own.shape[1], 1))
        assert all(how[name] is asked[name] for name in asked)
        check(ours, asked["attn_mask"], is_causal=asked["is_causal"], scale=asked["scale"])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("spec", [LoRA(rank=2), Prefix(length=3, mlp=None)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_base_stay(family, spec, padded, calls, in_double, monkeypatch):
    inputs = read_by(family, padded)
    ours = gradients(*adapted(torch.float64, spec, family), inputs)
    assert calls
    monkeypatch.setattr(short_attention, "SHORT", 0)
    plain = gradients(*adapted(torch.float64, spec, family), inputs)
    assert near(ours, plain)


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


@pytest.mark.parametrize("kind", [HALF, torch.float32])
def test_a_long_attention_is_no_further_off(kind):
    """Sums of hundreds of products, of scores that are large."""
    given = drawn(length=100, keys=100, width=64)
    check([t.to(kind) for t in given], is_causal=True, scale=0.25)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_attend_again(reentrant, calls, in_double):
    model, handle = adapted(torch.float64, Prefix(length=3, mlp=None) + LoRA(rank=2))
    model.train()
    plain = gradients(model, handle, text(6))
    once = len(calls)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    again = gradients(model, handle, text(6))
    # where it is reentrant its first pass runs without gradient, so through torch's attention
    assert len(calls) == once * (2 if reentrant else 3)
    assert near(again, plain)


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
