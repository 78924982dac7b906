"""KronA, exactly: y + s · (A ⊗ B) x at projections, and beside sub-layers with s_res · x."""

from __future__ import annotations

import pytest
import torch

import inlay
from inlay.blocks.kronecker import kronecker
from inlay.core.context import PassContext
from inlay.errors import MergeError, SiteError
from tests import zoo
from tests.methods import exact

SPEC = inlay.KronA(scale=3.0)
PARALLEL = inlay.KronA(scale=3.0, at="mlp")
RESIDUAL = inlay.KronA(scale=3.0, residual=True, at="mlp")


@pytest.mark.parametrize("spec", [SPEC, PARALLEL, RESIDUAL], ids=repr)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_starts_as_the_base(family: str, spec: inlay.Method) -> None:
    exact.check_start(family, spec)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_formula(family: str) -> None:
    _, handle = exact.moved(family, SPEC)
    placed = exact.first(handle)
    exact.expect(placed, 3.0 * torch.kron(placed.piece.a, placed.piece.b))


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_parallel_formula(family: str) -> None:
    """KronA^B_res adds s · x (A ⊗ B)ᵀ + s_res · x, and x is what enters the sub-layer."""
    model, handle = exact.moved(family, RESIDUAL)
    placed = exact.first(handle)
    piece = placed.piece
    x = torch.randn(2, 3, 32).double()
    expected = 3.0 * x @ torch.kron(piece.a, piece.b).T + piece.residual * x
    torch.testing.assert_close(piece(x, torch.randn_like(x), PassContext()), expected)
    entered: list[torch.Tensor] = []
    read: list[torch.Tensor] = []
    placed.site.enter.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    piece.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    exact.run(model, exact.batch(family))
    assert torch.equal(entered[0], read[0])


def test_the_rank_is_the_product_of_the_ranks() -> None:
    """4 × 4 ⊗ 5 × 5 has all 20 of its ranks, with 41 parameters."""
    a, b = torch.randn(4, 4).double(), torch.randn(5, 5).double()
    assert torch.linalg.matrix_rank(torch.kron(a, b)) == 20
    low = torch.randn(5, 2).double() @ torch.randn(2, 5).double()
    assert torch.linalg.matrix_rank(torch.kron(a, low)) == 8
    x = torch.randn(3, 20).double()
    torch.testing.assert_close(kronecker(x, a, b), x @ torch.kron(a, b).T, rtol=0, atol=4e-14)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "phi3"])
def test_merge(family: str) -> None:
    exact.check_merge(family, SPEC)


@pytest.mark.parametrize("spec", [PARALLEL, RESIDUAL], ids=repr)
def test_beside_a_sub_layer_nothing_is_merged(spec: inlay.Method) -> None:
    model, handle = exact.moved("llama", spec)
    before = model.model.layers[0].mlp.down_proj.weight.clone()
    with pytest.raises(MergeError, match=r"KronA at decoder\.0\.mlp cannot be folded"):
        handle.merge()
    assert torch.equal(model.model.layers[0].mlp.down_proj.weight, before)


@pytest.mark.parametrize("spec", [SPEC, RESIDUAL], ids=repr)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_training_leaves_the_base_alone(family: str, spec: inlay.Method) -> None:
    exact.train(family, spec)


def test_a_residual_scale_needs_a_sub_layer() -> None:
    with pytest.raises(SiteError, match="KronA acts on sub-layers .* with residual=True"):
        inlay.attach(zoo.model("llama"), inlay.KronA(residual=True))
