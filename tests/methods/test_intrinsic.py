"""Intrinsic dimension, exactly: W + λ P(z) with one z, and P drawn anew from a seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import inlay
from inlay.blocks.fastfood import Fastfood, hadamard
from inlay.errors import SpecError
from inlay.files import format as file_format
from inlay.laws.case import perturb
from tests import zoo
from tests.methods import exact

SPEC = inlay.Intrinsic(dimensions=200)


def test_the_transform_is_its_own_inverse_up_to_its_size() -> None:
    x = torch.randn(4096, dtype=torch.float64)
    torch.testing.assert_close(hadamard(hadamard(x)), 4096 * x)


@pytest.mark.parametrize("size", [1, 2, 8, 128])
def test_the_transform_is_sylvesters(size: int) -> None:
    rows = [[(-1) ** (i & j).bit_count() for j in range(size)] for i in range(size)]
    x = torch.randn(size, dtype=torch.float64)
    torch.testing.assert_close(hadamard(x), torch.tensor(rows, dtype=torch.float64) @ x)


def test_the_projection_is_the_product_of_its_matrices() -> None:
    p = Fastfood(50, 100, "seed")
    n = len(p.signs)
    assert n == 128
    h = torch.stack([hadamard(row) for row in torch.eye(n, dtype=torch.float64)])
    permutation = torch.eye(n, dtype=torch.float64)[p.order.long()]
    matrix = h @ torch.diag(p.gains.double()) @ permutation @ h @ torch.diag(p.signs.double())
    z = torch.randn(50, dtype=torch.float64)
    torch.testing.assert_close(p(z), matrix[:100, :50] @ z)
    assert sorted(p.order.tolist()) == list(range(n))
    assert set(p.signs.tolist()) == {-1, 1}


def test_the_projection_is_linear_and_keeps_lengths() -> None:
    p = Fastfood(300, 5000, "seed")
    a, b = torch.randn(300), torch.randn(300)
    torch.testing.assert_close(p(a + b), p(a) + p(b), rtol=1e-4, atol=1e-5)
    assert p(a).norm() / a.norm() == pytest.approx(1, abs=0.1)


def test_the_projection_depends_on_the_seed_alone() -> None:
    z = torch.arange(1.0, 6)
    assert torch.equal(Fastfood(5, 12, "a")(z), Fastfood(5, 12, "a")(z))
    assert not torch.equal(Fastfood(5, 12, "a")(z), Fastfood(5, 12, "b")(z))
    torch.manual_seed(1)
    first = Fastfood(5, 12, "a").order
    assert torch.equal(first, Fastfood(5, 12, "a").order)
    assert first.tolist() == ORDER
    torch.testing.assert_close(Fastfood(5, 12, "a")(z)[:4], torch.tensor(VALUES))


def test_another_dtype_leaves_the_projection_as_it_is() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, SPEC)
    gains = exact.first(handle).piece.projections["weight"].gains.clone()
    model.bfloat16()
    assert torch.equal(exact.first(handle).piece.projections["weight"].gains, gains)


ORDER = [4, 7, 6, 5, 15, 0, 14, 3, 13, 2, 12, 8, 10, 1, 9, 11]
VALUES = [-0.08060676, 0.4445278, -0.46176678, 1.2807443]
"""What the seed "a" draws, so that files of today are read rightly for ever."""


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "mixtral"])
def test_starts_as_the_base(family: str) -> None:
    exact.check_start(family, SPEC if family != "mixtral" else inlay.Intrinsic(scales=False))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_formula(family: str) -> None:
    _, handle = exact.moved(family, inlay.Intrinsic(dimensions=90, at=("attn.q", "mlp.up")))
    placed = exact.first(handle)
    piece = placed.piece
    z = piece._subspace.module.z
    matrix = piece.projections["weight"](z) * piece.scales[0]
    change, bias = piece.values()
    assert torch.equal(change, matrix.view(placed.site.d_out, placed.site.d_in))
    x = exact.host_input(placed)
    delta = x @ change.T + (0 if bias is None else bias)
    torch.testing.assert_close(piece.delta(x, x, None), delta, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scales", [True, False])
def test_as_many_numbers_are_trained_and_stored_as_there_are_dimensions(
    scales: bool, tmp_path: Path
) -> None:
    spec = inlay.Intrinsic(dimensions=200, scales=scales)
    model = zoo.fresh("bert")
    handle = inlay.attach(model, spec)
    assert handle.count() == handle.saved_count() == 200
    perturb(handle)
    path = handle.save(tmp_path / "intrinsic.safetensors")
    tensors = file_format.read(path).tensors
    assert sum(t.numel() for t in tensors.values()) == 200
    other = zoo.fresh("bert")
    inlay.load(other, path)
    inputs = exact.batch("bert")
    assert torch.equal(exact.run(other, inputs), exact.run(model, inputs))


def test_every_tensor_has_its_own_projection_and_one_position() -> None:
    handle = inlay.attach(zoo.fresh("llama"), SPEC)
    orders = [tuple(p.piece.projections["weight"].order.tolist()) for p in handle.placed]
    assert len(set(orders)) == len(orders)
    assert len({id(p.piece._subspace.module) for p in handle.placed}) == 1


def test_no_gradient_reaches_the_scales_at_the_start() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, SPEC)
    model(**exact.batch("llama")).logits.square().mean().backward()
    piece = exact.first(handle).piece
    assert piece.scales.grad.abs().max() == 0
    assert piece._subspace.module.z.grad.abs().max() > 0


def test_what_is_kept_without_gradients_follows_training() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, SPEC)
    inputs = exact.batch("llama")
    before = exact.run(model, inputs)
    perturb(handle)
    after = exact.run(model, inputs)
    assert not torch.equal(after, before)
    torch.testing.assert_close(model(**inputs).logits, after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "phi3"])
def test_merge(family: str) -> None:
    exact.check_merge(family, SPEC)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_training_leaves_the_base_alone(family: str) -> None:
    exact.train(family, SPEC)


def test_too_few_dimensions_for_the_scales_are_refused() -> None:
    with pytest.raises(SpecError, match="scales=False"):
        inlay.attach(zoo.fresh("bert"), inlay.Intrinsic(dimensions=20))
