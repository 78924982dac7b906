"""Pieces inside experts and routers: exact, by row, merged, recomputed."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf
from torch.nn import functional as F

import inlay
from inlay.core.site import Where
from inlay.errors import PortError
from inlay.laws.learning import checkpointed
from tests import zoo

EXPERTS = Where(("mlp.experts.gate", "mlp.experts.up", "mlp.experts.down"))
IDS = torch.tensor([[5, 17, 40, 8, 63, 22, 71], [9, 31, 12, 77, 54, 6, 20]])


def perturbed(handle, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in handle.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return handle


def logits(model, ids=IDS, **more):
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


def updated_by_hand(model, handle):
    """A copy of the base whose fused parameters have B A added, expert by expert."""
    copied = copy.deepcopy(model.base_model)
    inner = 48
    for placed in handle.placed:
        expert = placed.site.expert
        experts = copied.layers[placed.site.layer].mlp.experts
        update = placed.piece.scale * placed.piece.b.detach() @ placed.piece.a.detach()
        rows = {"gate": slice(0, inner), "up": slice(inner, 2 * inner), "down": slice(None)}
        part = placed.site.role.rpartition(".")[2]
        matrix = experts.down_proj if part == "down" else experts.gate_up_proj
        matrix.data[expert.number, rows[part]] += update
    return copied


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_lora_is_the_update_of_the_fused_parameters(implementation):
    model = zoo.fresh("mixtral")
    model.set_experts_implementation(implementation)
    base = copy.deepcopy(model)
    handle = perturbed(inlay.attach(model, inlay.LoRA(rank=2, at=EXPERTS)))
    assert len(handle.placed) == 2 * 4 * 3  # blocks, experts, projections
    base.model = updated_by_hand(base, handle)
    expected = logits(base)
    assert torch.allclose(logits(model), expected, atol=1e-4)
    assert not torch.allclose(expected, logits(zoo.fresh("mixtral")), atol=1e-2)
    handle.merge()
    assert torch.allclose(logits(model), expected, atol=1e-4)
    assert torch.equal(
        model.model.layers[0].mlp.experts.down_proj, base.model.layers[0].mlp.experts.down_proj
    )


def test_ia3_scales_what_each_expert_reads():
    model = zoo.fresh("mixtral")
    base = copy.deepcopy(model)
    handle = perturbed(inlay.attach(model, inlay.IA3(at="mlp.experts.down")))
    for placed in handle.placed:
        experts = base.model.layers[placed.site.layer].mlp.experts
        experts.down_proj.data[placed.site.expert.number] *= placed.piece.factor.detach()
    assert torch.allclose(logits(model), logits(base), atol=1e-4)


def test_biases_of_experts_that_are_interleaved_and_transposed():
    config = hf.GptOssConfig(
        **{**zoo.GQA, "head_dim": 8, "num_hidden_layers": 2, "num_local_experts": 4},
        num_experts_per_tok=2,
    )
    torch.manual_seed(0)
    model = hf.GptOssForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    base = copy.deepcopy(model)
    at = ("mlp.experts.gate", "mlp.experts.up", "mlp.experts.down")
    handle = perturbed(inlay.attach(model, inlay.BitFit(at=at)))
    for placed in handle.placed:
        experts = base.model.layers[placed.site.layer].mlp.experts
        number, shift = placed.site.expert.number, placed.piece.shift.detach()
        part = placed.site.role.rpartition(".")[2]
        if part == "down":
            experts.down_proj_bias.data[number] += shift
        else:
            experts.gate_up_proj_bias.data[number, 0 if part == "gate" else 1 :: 2] += shift
    expected = logits(base)
    assert torch.allclose(logits(model), expected, atol=1e-4)
    handle.merge()
    assert torch.allclose(logits(model), expected, atol=1e-4)


def test_the_base_runs_its_own_experts_where_no_piece_serves():
    model = zoo.fresh("mixtral")
    bare = logits(model)
    handle = perturbed(inlay.attach(model, inlay.LoRA(rank=2, at=EXPERTS)))
    with inlay.rows(model, [None]):
        assert torch.equal(logits(model), bare)
    handle.enabled = False
    assert torch.equal(logits(model), bare)


def test_rows_have_their_own_experts():
    model = zoo.fresh("mixtral")
    spec = inlay.LoRA(rank=2, at=EXPERTS) + inlay.IA3(at="mlp.down")
    perturbed(inlay.attach(model, spec, name="a"), 1)
    perturbed(inlay.attach(model, spec, name="b"), 2)
    ids = torch.cat((IDS, IDS.flip(0)))
    names = ["a", None, "b", ("a", "b")]
    with inlay.rows(model, names):
        mixed = logits(model, ids)
    for row, name in enumerate(names):
        with inlay.rows(model, [name]):
            assert torch.allclose(mixed[row], logits(model, ids[row : row + 1])[0], atol=1e-4)


def gradients(model, handle):
    model.train()
    loss = model(input_ids=IDS, use_cache=False).logits.square().mean()
    loss.backward()
    result = [parameter.grad.clone() for parameter in handle.parameters()]
    for parameter in handle.parameters():
        parameter.grad = None
    return result


def test_recomputed_experts_have_the_same_gradients():
    model = zoo.fresh("mixtral")
    handle = perturbed(inlay.attach(model, inlay.LoRA(rank=2, at=(*EXPERTS.roles, "mlp.router"))))
    plain = gradients(model, handle)
    with checkpointed(model):
        recomputed = gradients(model, handle)
    for one, other in zip(plain, recomputed, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_an_expert_without_tokens_has_a_gradient_of_zeros():
    model = zoo.fresh("mixtral")
    handle = perturbed(inlay.attach(model, inlay.LoRA(rank=2, at="mlp.experts.down")))
    model(input_ids=IDS[:1, :1]).logits.sum().backward()
    with_gradient = {
        (p.site.layer, p.site.expert.number) for p in handle.placed if p.piece.a.grad.any()
    }
    assert all(parameter.grad is not None for parameter in handle.parameters())
    assert len(with_gradient) == 2 * 2  # blocks, experts of the only token


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_lora_at_a_router_is_the_update_of_its_matrix(family):
    model = zoo.fresh(family)
    base = copy.deepcopy(model)
    handle = perturbed(inlay.attach(model, inlay.LoRA(rank=2, at="mlp.router")))
    for placed in handle.placed:
        gate = base.model.layers[placed.site.layer].mlp.gate
        update = placed.piece.scale * placed.piece.b.detach() @ placed.piece.a.detach()
        gate.weight.data += update
    expected = logits(base)
    assert not torch.allclose(expected, logits(zoo.fresh(family)), atol=1e-3)
    assert torch.allclose(logits(model), expected, atol=1e-4)
    handle.merge()
    assert torch.allclose(logits(model), expected, atol=1e-4)


def test_no_product_is_changed_after_a_router_has_failed():
    model = zoo.fresh("mixtral")
    perturbed(inlay.attach(model, inlay.LoRA(rank=2, at="mlp.router")))
    gate = model.model.layers[0].mlp.gate
    with pytest.raises(AttributeError):
        gate("no tensor")
    x, weight = torch.randn(3, 32), gate.weight
    assert torch.equal(F.linear(x, weight), x @ weight.T)


def test_a_router_that_makes_no_product_is_noticed(monkeypatch):
    model = zoo.fresh("mixtral")
    handle = inlay.attach(model, inlay.LoRA(rank=2, at="mlp.router"))
    kind = type(model.model.layers[0].mlp.gate)
    forward = kind.forward

    def otherwise(self, x):
        with torch.no_grad():
            scores = x @ self.weight.T
        top = scores.topk(2)
        return scores, top.values.softmax(-1), top.indices

    monkeypatch.setattr(kind, "forward", otherwise)
    with pytest.raises(PortError, match="did not multiply by its matrix as torch does"):
        logits(model)
    with inlay.rows(model, [None]):
        logits(model)
    monkeypatch.setattr(kind, "forward", forward)
    handle.detach()


def test_where_pieces_cannot_act_inside_experts_attach_says_so():
    model = zoo.fresh("mixtral")
    model.model.layers[0].mlp.experts._is_expert_parallel = True
    with pytest.raises(PortError, match="are spread over several processes"):
        inlay.attach(model, inlay.LoRA(rank=2, at=EXPERTS))
    assert inlay.attached(model) == {}


def test_deep_copies_and_detached_models_keep_nothing():
    model = zoo.fresh("mixtral")
    handle = perturbed(inlay.attach(model, inlay.LoRA(rank=2, at=EXPERTS)))
    expected = logits(model)
    copied = copy.deepcopy(model)
    assert torch.equal(logits(copied), expected)
    handle.detach()
    assert torch.equal(logits(model), logits(zoo.fresh("mixtral")))
    assert torch.equal(logits(copied), expected)
