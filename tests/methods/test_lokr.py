"""LoKr, exactly: y + (α/r) · (W₁ ⊗ W₂) x."""

from __future__ import annotations

import pytest
import torch

import inlay
from inlay.blocks.kronecker import kronecker, split
from inlay.laws.case import perturb
from tests import zoo
from tests.methods import exact

SPECS = [inlay.LoKr(rank=1, alpha=3), inlay.LoKr(rank=8, alpha=4), inlay.LoKr(rank=2, factor=2)]


def test_a_kronecker_product_is_applied_without_being_formed() -> None:
    a, b = torch.randn(2, 3).double(), torch.randn(5, 4).double()
    x = torch.randn(6, 7, 12).double()
    torch.testing.assert_close(kronecker(x, a, b), x @ torch.kron(a, b).T, rtol=0, atol=4e-15)


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [(768, None, (24, 32)), (127, None, (1, 127)), (128, 4, (4, 32)), (128, 5, (4, 32))],
)
def test_split(size: int, factor: int | None, expected: tuple[int, int]) -> None:
    assert split(size, factor) == expected


def test_split_is_that_of_peft() -> None:
    exact.peft()
    from peft.tuners.lokr.layer import factorization

    for size in [*range(1, 150), 576, 768, 1024, 4096, 11008]:
        assert split(size) == factorization(size, -1)
        for factor in (1, 2, 3, 4, 8, 16):
            assert split(size, factor) == factorization(size, factor), (size, factor)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_starts_as_the_base(family: str, spec: inlay.Method) -> None:
    exact.check_start(family, spec)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_formula(family: str, spec: inlay.Method) -> None:
    _, handle = exact.moved(family, spec)
    placed = exact.first(handle)
    product = torch.kron(placed.piece.w1, placed.piece.second())
    exact.expect(placed, spec.alpha / spec.rank * product)


def test_the_second_matrix_is_factored_where_the_rank_is_less_than_half_of_its_side() -> None:
    """32 = 4 · 8: W₂ is 8 × 8, factored for R < 4."""
    for rank, factored in ((3, True), (4, False)):
        piece = exact.first(inlay.attach(zoo.fresh("llama"), inlay.LoKr(rank=rank))).piece
        assert (piece.w2 is None) == factored
        assert piece.w1.shape == (4, 4) and piece.second().shape == (8, 8)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_merge(family: str, spec: inlay.Method) -> None:
    exact.check_merge(family, spec)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_training_leaves_the_base_alone(family: str) -> None:
    exact.train(family, inlay.LoKr(rank=2))


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_equals_peft(spec: inlay.LoKr) -> None:
    peft = exact.peft()
    model = zoo.fresh("llama")
    where = inlay.Where(("attn.q", "attn.v"))
    handle = inlay.attach(model, spec)
    assert handle.spec.at.roles[:2] == where.roles
    perturb(handle)
    factor = -1 if spec.factor is None else spec.factor
    config = peft.LoKrConfig(
        r=spec.rank,
        alpha=spec.alpha,
        decompose_factor=factor,
        target_modules=["q_proj", "v_proj"],
    )
    other = exact.with_peft("llama", config)
    for role, projection in (("attn.q", "q_proj"), ("attn.v", "v_proj")):
        pieces = [placed.piece for placed in handle.placed if placed.site.role == role]
        for piece, layer in zip(pieces, exact.peft_layers(other, projection), strict=True):
            layer.lokr_w1["default"].data = piece.w1.detach().clone()
            for part, name in (("w2", "lokr_w2"), ("b", "lokr_w2_a"), ("a", "lokr_w2_b")):
                if getattr(piece, part) is not None:
                    getattr(layer, name)["default"].data = getattr(piece, part).detach().clone()
    exact.check_peft(handle, model, other, "llama")
