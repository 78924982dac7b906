"""Compacter, exactly: y + U f(D y), each matrix a sum of Kronecker products."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import inlay
from inlay.blocks.kronecker import sum_of_products
from inlay.errors import SpecError
from inlay.files import format as file_format
from inlay.laws.case import perturb
from inlay.methods.compacter import CompactAdapter
from tests import zoo
from tests.methods import exact

SPEC = inlay.Compacter(bottleneck=8, terms=4)


def adapters(handle: inlay.Inlay) -> list[CompactAdapter]:
    return [p.piece for p in handle.placed if isinstance(p.piece, CompactAdapter)]


def test_a_sum_of_products() -> None:
    a, b = torch.randn(3, 2, 5).double(), torch.randn(3, 4, 6).double()
    expected = sum(torch.kron(left, right) for left, right in zip(a, b, strict=True))
    torch.testing.assert_close(sum_of_products(a, b), expected)


def test_formula() -> None:
    _, handle = exact.moved("llama", SPEC)
    placed = next(p for p in handle.placed if isinstance(p.piece, CompactAdapter))
    piece, y = placed.piece, torch.randn(2, 5, 32).double()
    weights = []
    for part in (piece.down, piece.up):
        slow = part._slow.module.a
        fast = [s @ t for s, t in zip(part.s, part.t, strict=True)]
        weights.append(sum(torch.kron(a, b) for a, b in zip(slow, fast, strict=True)))
    inner = F.gelu(y @ weights[0] + piece.down.bias)
    torch.testing.assert_close(piece.delta(y, y, None), inner @ weights[1] + piece.up.bias)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_without_its_second_projection_it_is_the_base(family: str) -> None:
    model, inputs = zoo.fresh(family), exact.batch(family)
    base = exact.run(model, inputs)
    for piece in adapters(inlay.attach(model, SPEC)):
        piece.up.t.data.zero_()
    torch.testing.assert_close(exact.run(model, inputs), base)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_slow_matrices_are_one_tensor_everywhere(family: str, tmp_path: Path) -> None:
    model = zoo.fresh(family)
    handle = inlay.attach(model, SPEC)
    perturb(handle)
    path = handle.save(tmp_path / "compacter.safetensors")
    tensors = file_format.read(path).tensors
    assert [name for name in tensors if "slow" in name] == ["shared/0/compacter/slow/a"]
    other = zoo.fresh(family)
    for inlays in (handle, inlay.load(other, path)):
        slow = [part._slow.module.a for p in adapters(inlays) for part in (p.down, p.up)]
        assert len({tensor.data_ptr() for tensor in slow}) == 1
    inputs = exact.batch(family)
    assert torch.equal(exact.run(other, inputs), exact.run(model, inputs))


def test_phm_adapters_share_nothing() -> None:
    spec = inlay.Compacter(bottleneck=8, rank=None, share_slow=False, at="mlp")
    handle = inlay.attach(zoo.fresh("llama"), spec)
    slow = [part._slow.module.a for p in adapters(handle) for part in (p.down, p.up)]
    assert len({tensor.data_ptr() for tensor in slow}) == len(slow) == 2 * len(adapters(handle))
    assert handle.count() == len(adapters(handle)) * (2 * (8 * 32 // 4 + 64) + 8 + 32)


def test_training_leaves_the_base_alone() -> None:
    exact.train("llama", SPEC)


@pytest.mark.parametrize("spec", [inlay.Compacter(bottleneck=6), inlay.Compacter(terms=3)])
def test_sizes_that_do_not_divide_are_refused(spec: inlay.Method) -> None:
    with pytest.raises(SpecError, match=r"terms=\d must divide .*; give a bottleneck"):
        inlay.attach(zoo.fresh("llama"), spec)
