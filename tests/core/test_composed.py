"""Methods made of several others, and shared modules of which training decides the size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

import inlay
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, modules_inside
from inlay.core.piece import OutputDelta, Piece, Reference, Resizable
from inlay.core.site import Site, Where
from inlay.laws.case import perturb
from inlay.laws.compare import model_output
from inlay.testing import laws_hold
from tests import zoo


class Bank(Resizable):
    """Vectors that all pieces read, as many as training leaves."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(count, width) * 0.1)

    @override
    def resize(self, shapes: Mapping[str, torch.Size]) -> None:
        if "rows" in shapes:
            self.rows = nn.Parameter(torch.zeros(shapes["rows"]))


@dataclass(frozen=True, repr=False)
class Banked(Method, listed=False):
    """Adds the mean of shared vectors."""

    count: int = 2
    at: Where = Where(("attn.q", "attn.v"))

    @override
    def build(self, site: Site, shared: Shared) -> Mean:
        return Mean(shared.module("bank", lambda: Bank(self.count, site.d_in)), site.d_out)

    @override
    def penalty(self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module]) -> Tensor:
        bank = shared["bank"]
        assert isinstance(bank, Bank)
        return self.count * bank.rows.square().sum()


class Mean(OutputDelta):
    def __init__(self, bank: Bank, width: int):
        super().__init__()
        self.bank = Reference(bank)
        self.out = nn.Parameter(torch.randn(width) * 0.1)

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        score = F.linear(x, self.bank.module.rows.to(x.dtype)).mean(-1, keepdim=True)
        return score * self.out


@dataclass(frozen=True, repr=False)
class Both(Method, listed=False):
    """Two methods at one place, each with shared modules of its own."""

    first: Banked = Banked(count=2)
    second: Banked = Banked(count=5)
    at: Where = Where(("attn.q", "attn.v"))

    @override
    def build(self, site: Site, shared: Shared) -> Added:
        return Added(
            self.first.build(site, shared.inside("first")),
            self.second.build(site, shared.inside("second")),
        )

    @override
    def penalty(self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module]) -> Tensor:
        first = self.first.penalty({}, modules_inside(shared, "first"))
        return first + self.second.penalty({}, modules_inside(shared, "second"))


class Added(OutputDelta):
    def __init__(self, first: Mean, second: Mean):
        super().__init__()
        self.first, self.second = first, second

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return self.first.delta(x, y, context) + self.second.delta(x, y, context)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for kind in (Banked, Both):
        monkeypatch.setitem(inlay.METHODS, kind.__name__, kind)
    return


def banks(handle: inlay.Inlay) -> dict[str, torch.Size]:
    tensors = handle.named_tensors().items()
    return {name: tensor.shape for name, tensor in tensors if name.startswith("shared/")}


def test_inner_methods_with_equal_keys_share_nothing(tmp_path: Path) -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, Both())
    assert banks(handle) == {
        "shared/0/both/first/bank/rows": torch.Size([2, 32]),
        "shared/0/both/second/bank/rows": torch.Size([5, 32]),
    }
    perturb(handle)
    rows = [t for name, t in handle.named_tensors().items() if name.endswith("bank/rows")]
    penalty = handle.penalty()
    assert penalty is not None
    torch.testing.assert_close(penalty, 2 * rows[0].square().sum() + 5 * rows[1].square().sum())
    inputs = {"input_ids": torch.arange(8, 16)[None]}
    expected = model_output(model, inputs)
    path = handle.save(tmp_path / "both.safetensors")
    handle.detach()
    inlay.load(model, path)
    assert torch.equal(model_output(model, inputs), expected)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_laws_hold_for_it(family: str) -> None:
    verdict = laws_hold(Both(), family)
    assert verdict.refusal is None
    assert {"shared modules", "save → load", "rows do not meet"} <= set(verdict.spoke)


def cut(handle: inlay.Inlay, count: int) -> None:
    """What training may do to a shared module: keep some of it."""
    for part in handle._pieces.shared.values():
        assert isinstance(part, Bank)
        part.rows = nn.Parameter(part.rows.detach()[:count].clone())


def test_the_size_of_a_shared_module_comes_from_the_file(tmp_path: Path) -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, Banked(count=4))
    perturb(handle)
    cut(handle, 3)
    expected = model_output(model, {"input_ids": torch.arange(8, 16)[None]})
    path = handle.save(tmp_path / "banked.safetensors")
    handle.detach()
    loaded = inlay.load(model, path)
    assert banks(loaded) == {"shared/0/banked/bank/rows": torch.Size([3, 32])}
    assert torch.equal(model_output(model, {"input_ids": torch.arange(8, 16)[None]}), expected)


def test_the_size_of_a_shared_module_comes_from_a_checkpoint() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, Both())
    cut(handle, 1)
    state = {name: tensor.clone() for name, tensor in handle.training_state().items()}
    handle.detach()
    fresh = inlay.attach(model, Both())
    fresh.load_training_state(state)
    assert {shape[0] for shape in banks(fresh).values()} == {1}
    assert all(torch.equal(fresh.training_state()[name], state[name]) for name in state)


def test_a_copy_of_a_method_takes_the_sizes_over() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, Banked(count=4), name="one")
    cut(handle, 2)
    other = inlay.attach(model, inlay.LoRA(rank=2) + Banked(count=4), name="other")
    other.copy_from(handle, {1: 0})
    assert banks(other) == {"shared/1/banked/bank/rows": torch.Size([2, 32])}
