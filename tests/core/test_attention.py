"""The way into attention: short texts in fp32 while a base in half precision learns on a CPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import inlay
from inlay import LoRA, Prefix
from inlay.ports import attention
from inlay.ports.keys import KeysPort, Passing
from inlay.route import Route
from tests.zoo import fresh


@pytest.fixture
def dtypes(monkeypatch):
    """The precision of every query that reaches torch's attention."""
    seen = []

    def spy(module, query, *args, **kwargs):
        seen.append(query.dtype)
        return sdpa_attention_forward(module, query, *args, **kwargs)

    mapping = ALL_ATTENTION_FUNCTIONS._global_mapping
    monkeypatch.setitem(mapping, "inlay_sdpa", partial(attention._attention, spy))
    return seen


SPEC = LoRA(rank=2)


def adapted(dtype=torch.bfloat16, spec=SPEC, family="llama"):
    model = fresh(family).to(dtype).train()
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


def test_only_short_texts_that_learn_go_in_fp32(dtypes):
    model, _ = adapted()
    model(**text(6))
    assert set(dtypes) == {torch.float32}
    dtypes.clear()
    with torch.no_grad():
        model(**text(6))
    model(**text(attention.SHORT))
    assert set(dtypes) == {torch.bfloat16}


def test_a_base_without_inlays_is_left_alone(dtypes):
    model, handle = adapted()
    handle.detach()
    model.requires_grad_(True)(**text(6))
    assert not dtypes


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("spec", [LoRA(rank=2), Prefix(length=3, mlp=None)], ids=str)
@pytest.mark.parametrize("family", ["llama", "t5", "bert"])
def test_gradients_come_nearer_to_those_of_fp32(family, spec, padded, monkeypatch):
    inputs = text(9, rows=4, padded=padded)
    if family == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    exact = gradients(*adapted(torch.float32, spec, family), inputs)
    ours = gradients(*adapted(torch.bfloat16, spec, family), inputs)
    monkeypatch.setattr(attention, "SHORT", 0)
    plain = gradients(*adapted(torch.bfloat16, spec, family), inputs)
    assert not torch.equal(ours, plain)
    assert (ours - exact).norm() <= 1.1 * (plain - exact).norm()


def test_gradients_of_one_attention(monkeypatch):
    core = torch.nn.Module()
    core.num_key_value_groups, core.is_causal = 3, True
    setattr(core, attention.PORT, KeysPort("here", Route(), Passing()))
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(4, heads, 30, 16, generator=draw).bfloat16() for heads in (6, 2, 2)]
    weights = torch.randn(4, 30, 6, 16, generator=draw).bfloat16()

    def back(dtype):
        inputs = [t.to(dtype).requires_grad_() for t in given]
        output, _ = attention._attention(sdpa_attention_forward, core, *inputs, None, scaling=0.25)
        assert output.dtype == dtype
        output.backward(weights.to(dtype))
        return [t.grad.float() for t in inputs]

    exact, ours = back(torch.float32), back(torch.bfloat16)
    monkeypatch.setattr(attention, "SHORT", 0)
    plain = back(torch.bfloat16)
    for right, one, other in zip(exact, ours, plain, strict=True):
        assert (one - right).norm() <= (other - right).norm()
        assert (one - right).norm() <= 0.004 * right.norm()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_keep_nothing_of_attention(reentrant, monkeypatch):
    kept = []
    real = attention._kept_in
    monkeypatch.setattr(attention, "_kept_in", lambda dtype: kept.append(dtype) or real(dtype))
    spec = Prefix(length=3, mlp=None) + LoRA(rank=2)
    exact = gradients(*adapted(torch.float32, spec), text(6))
    model, handle = adapted(spec=spec)
    plain = gradients(model, handle, text(6))
    assert kept
    kept.clear()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    again = gradients(model, handle, text(6))
    assert not kept
    assert (again - exact).norm() <= 1.5 * (plain - exact).norm()
