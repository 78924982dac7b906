"""DoRA, exactly: m ⊙ (W + s B A) x / ‖W + s B A‖ + b."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import inlay
from inlay.errors import SpecError
from inlay.laws.case import perturb
from inlay.laws.compare import model_output
from tests import zoo
from tests.methods import exact

SPEC = inlay.DoRA(rank=3, alpha=12)


def decomposed(placed: Any) -> torch.Tensor:
    """The whole matrix that the method computes with, `[d_out, d_in]`."""
    piece = placed.piece
    updated = placed.site.weight() + 4.0 * piece.b @ piece.a
    return piece.magnitude[:, None] * updated / updated.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "bert", "t5"])
def test_starts_as_the_base(family: str) -> None:
    exact.check_start(family, SPEC)


@pytest.mark.parametrize("role", ["attn.q", "attn.o"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3", "bert"])
def test_formula(family: str, role: str) -> None:
    """Also for parts of a fused projection, a transposed matrix, and with a bias."""
    _, handle = exact.moved(family, inlay.DoRA(rank=3, alpha=12, at=role))
    placed = exact.first(handle)
    exact.expect(placed, decomposed(placed) - placed.site.weight())


def test_lengths_are_those_of_the_rows() -> None:
    _, handle = exact.moved("llama", SPEC)
    placed = exact.first(handle)
    lengths = decomposed(placed).norm(dim=1)
    torch.testing.assert_close(lengths, placed.piece.magnitude.abs())


def test_the_norm_gets_no_gradient() -> None:
    """The gradient of A is that of the formula with the norm held constant."""
    _, handle = exact.moved("llama", inlay.DoRA(rank=3, alpha=12, at="attn.q"))
    placed = exact.first(handle)
    piece, site = placed.piece, placed.site
    x = exact.host_input(placed)
    site.host(x).sin().sum().backward()
    a = piece.a.detach().clone().requires_grad_()
    updated = site.weight() + 4.0 * piece.b.detach() @ a
    whole = piece.magnitude.detach()[:, None] * updated / updated.detach().norm(dim=1, keepdim=True)
    (x @ whole.T).sin().sum().backward()
    torch.testing.assert_close(piece.a.grad, a.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "bert", "phi3"])
def test_merge(family: str) -> None:
    exact.check_merge(family, SPEC)


def test_merge_with_another_method_at_the_same_place() -> None:
    exact.check_merge("llama", inlay.LoRA(rank=2) + SPEC)
    exact.check_merge("bert", SPEC + inlay.BitFit(at="attn.q"))
    exact.check_merge("bert", inlay.BitFit(at="attn.q") + SPEC)
    exact.check_merge("gpt2", inlay.IA3(at="attn.v") + SPEC)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_training_leaves_the_base_alone(family: str) -> None:
    exact.train(family, SPEC)


def test_a_copy_reads_the_matrix_of_its_own_base() -> None:
    model, _ = exact.moved("llama", SPEC)
    twin = copy.deepcopy(model)
    piece = inlay.attached(twin)["default"].placed[0].piece
    assert piece.site.host is twin.model.layers[0].self_attn.q_proj


def test_drops_out_in_training_only() -> None:
    model, _ = exact.moved("llama", inlay.DoRA(rank=2, dropout=0.5))
    inputs = exact.batch("llama")
    assert torch.equal(exact.run(model, inputs), exact.run(model, inputs))
    model.train()
    assert not torch.equal(exact.run(model, inputs), model_output(model, inputs, seed=1))


@pytest.mark.parametrize(
    ("family", "role", "projection"),
    [
        ("llama", "attn.q", "q_proj"),
        ("gpt2", "attn.o", "attn.c_proj"),
        ("bert", "attn.v", "value"),
    ],
)
def test_equals_peft(family: str, role: str, projection: str) -> None:
    peft = exact.peft()
    model = zoo.fresh(family)
    handle = inlay.attach(model, inlay.DoRA(rank=3, alpha=12, at=role))
    config = peft.LoraConfig(
        r=3,
        lora_alpha=12,
        use_dora=True,
        target_modules=[projection],
        fan_in_fan_out=family == "gpt2",
    )
    other = exact.with_peft(family, config)
    layers = exact.peft_layers(other, projection)
    for placed, layer in zip(handle.placed, layers, strict=True):
        torch.testing.assert_close(
            placed.piece.magnitude, layer.lora_magnitude_vector["default"].weight
        )
    perturb(handle)
    for placed, layer in zip(handle.placed, layers, strict=True):
        layer.lora_A["default"].weight.data = placed.piece.a.detach().clone()
        layer.lora_B["default"].weight.data = placed.piece.b.detach().clone()
        magnitude = layer.lora_magnitude_vector["default"]
        magnitude.weight.data = placed.piece.magnitude.detach().clone()
    exact.check_peft(handle, model, other, family)


def test_a_row_of_zeros_stays_zero() -> None:
    model = zoo.fresh("llama")
    model.model.layers[0].self_attn.q_proj.weight.data[3] = 0
    inlay.attach(model, SPEC)
    assert model_output(model, exact.batch("llama")).isfinite().all()


def test_rank_larger_than_the_matrix() -> None:
    with pytest.raises(SpecError, match=r"DoRA: rank 17 is larger than the matrix at .*at most 16"):
        inlay.attach(zoo.model("llama"), inlay.DoRA(rank=17))
