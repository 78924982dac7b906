"""LoHa, exactly: y + (α/r) · (B₁A₁ ⊙ B₂A₂) x."""

from __future__ import annotations

import pytest
import torch

import inlay
from inlay.errors import SpecError
from inlay.laws.case import perturb
from tests import zoo
from tests.methods import exact

SPEC = inlay.LoHa(rank=3, alpha=12)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "t5"])
def test_starts_as_the_base(family: str) -> None:
    exact.check_start(family, SPEC)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_formula(family: str) -> None:
    _, handle = exact.moved(family, SPEC)
    placed = exact.first(handle)
    piece = placed.piece
    exact.expect(placed, 4.0 * (piece.b1 @ piece.a1) * (piece.b2 @ piece.a2))


def test_rank_is_the_square() -> None:
    """Two matrices of rank 3 give one of rank 9, with the parameters of one of rank 6."""
    _, handle = exact.moved("llama", SPEC)
    piece = exact.first(handle).piece
    assert torch.linalg.matrix_rank((piece.b1 @ piece.a1) * (piece.b2 @ piece.a2)) == 9


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5-gated", "phi3"])
def test_merge(family: str) -> None:
    exact.check_merge(family, SPEC)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_training_leaves_the_base_alone(family: str) -> None:
    exact.train(family, SPEC)


def test_equals_peft() -> None:
    peft = exact.peft()
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.LoHa(rank=3, alpha=12, at="attn.q"))
    perturb(handle)
    config = peft.LoHaConfig(r=3, alpha=12, target_modules=["q_proj"])
    other = exact.with_peft("llama", config)
    layers = exact.peft_layers(other, "q_proj")
    for placed, layer in zip(handle.placed, layers, strict=True):
        pairs = {"b1": "hada_w1_a", "a1": "hada_w1_b", "b2": "hada_w2_a", "a2": "hada_w2_b"}
        for part, name in pairs.items():
            getattr(layer, name)["default"].data = getattr(placed.piece, part).detach().clone()
    exact.check_peft(handle, model, other, "llama")


def test_rank_larger_than_the_matrix() -> None:
    with pytest.raises(SpecError, match=r"LoHa: rank 17 is larger than the matrix at .*at most 16"):
        inlay.attach(zoo.model("llama"), inlay.LoHa(rank=17))
