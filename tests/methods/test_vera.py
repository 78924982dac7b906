"""VeRA, exactly: y + Λ_b B Λ_d A x with one random pair for all places."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import inlay
from inlay.core.piece_set import PieceSet
from inlay.files import format as file_format
from inlay.laws.case import perturb
from inlay.laws.compare import relative_error
from tests import zoo
from tests.methods import exact

SPEC = inlay.VeRA(rank=40)


def pair(handle: inlay.Inlay) -> tuple[torch.Tensor, torch.Tensor]:
    """The shared A and B, as the first piece reads them."""
    return exact.first(handle).piece.projections()


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_starts_as_the_base(family: str) -> None:
    exact.check_start(family, SPEC)
    piece = exact.first(inlay.attach(zoo.fresh(family), SPEC)).piece
    assert torch.equal(piece.scale_d, torch.full((40,), 0.1))
    assert torch.equal(piece.scale_b, torch.zeros(32))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_formula(family: str) -> None:
    _, handle = exact.moved(family, SPEC)
    placed = exact.first(handle)
    a, b = placed.piece.projections()
    diagonals = torch.diag(placed.piece.scale_b), torch.diag(placed.piece.scale_d)
    exact.expect(placed, diagonals[0] @ b @ diagonals[1] @ a)


def test_the_pair_is_as_large_as_the_largest_place() -> None:
    handle = inlay.attach(zoo.fresh("llama"), inlay.VeRA(rank=5, at=("attn.k", "mlp.down")))
    tensors = handle.named_tensors()
    assert tensors["shared/0/vera/projections/a"].shape == (5, 48)  # mlp.down reads 48
    assert tensors["shared/0/vera/projections/b"].shape == (32, 5)
    for placed in handle.placed:
        a, b = placed.piece.projections()
        assert a.shape == (5, placed.site.d_in) and b.shape == (placed.site.d_out, 5)


def test_the_pair_is_one_storage_in_memory_in_the_file_and_after_loading(tmp_path: Path) -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, SPEC)
    perturb(handle)
    path = handle.save(tmp_path / "vera.safetensors")
    file = file_format.read(path)
    shared = [name for name in file.tensors if name.startswith("shared/")]
    assert sorted(shared) == ["shared/0/vera/projections/a", "shared/0/vera/projections/b"]
    per_place = [name for name in file.tensors if not name.startswith("shared/")]
    assert len(per_place) == 2 * len(handle.placed)
    assert sum(file.tensors[name].numel() for name in per_place) == handle.count()
    other = zoo.fresh("llama")
    loaded = inlay.load(other, path)
    for inlays in (handle, loaded):
        for part in (0, 1):
            views = [placed.piece.projections()[part] for placed in inlays.placed]
            assert len({view.untyped_storage().data_ptr() for view in views}) == 1
            assert torch.equal(views[0], pair(handle)[part])
    inputs = exact.batch("llama")
    assert torch.equal(exact.run(other, inputs), exact.run(model, inputs))


def test_the_pair_is_never_trained() -> None:
    torch.manual_seed(4)
    start = [t.clone() for t in pair(inlay.attach(zoo.fresh("llama"), SPEC))]
    torch.manual_seed(4)
    _, handle = exact.train("llama", SPEC)
    assert all(torch.equal(a, b) for a, b in zip(pair(handle), start, strict=True))
    frozen = {name for name, p in handle._pieces.named_parameters() if not p.requires_grad}
    assert len(frozen) == 2
    assert handle.count() == sum(40 + p.site.d_out for p in handle.placed)


def test_starting_values_of_the_pair() -> None:
    """Uniform with the variance 2 / columns."""
    a, b = pair(inlay.attach(zoo.fresh("llama"), inlay.VeRA(rank=2000)))
    for matrix in (a, b):
        bound = (6 / matrix.shape[1]) ** 0.5
        assert matrix.abs().max() <= bound
        assert matrix.std() == pytest.approx((2 / matrix.shape[1]) ** 0.5, rel=0.02)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5-gated", "phi3"])
def test_merge(family: str) -> None:
    exact.check_merge(family, SPEC)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_training_leaves_the_base_alone(family: str) -> None:
    exact.train(family, SPEC)


def test_two_in_one_sum_have_a_pair_each() -> None:
    handle = inlay.attach(zoo.fresh("llama"), inlay.VeRA(rank=5) + inlay.VeRA(rank=7, at="mlp.up"))
    assert isinstance(handle._pieces, PieceSet)
    assert {name.split("/")[1] for name in handle.named_tensors() if "shared" in name} == {"0", "1"}


@pytest.mark.parametrize("roles", [("attn.q", "attn.v"), ("attn.q", "mlp.down")])
def test_equals_peft(roles: tuple[str, str]) -> None:
    peft = exact.peft()
    names = {"attn.q": "q_proj", "attn.v": "v_proj", "mlp.down": "down_proj"}
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.VeRA(rank=40, at=roles))
    perturb(handle)
    config = peft.VeraConfig(r=40, target_modules=[names[role] for role in roles])
    other = exact.with_peft("llama", config)
    tensors = handle.named_tensors()
    assert other.base_model.vera_A["default"].shape == tensors["shared/0/vera/projections/a"].shape
    other.base_model.vera_A["default"].copy_(tensors["shared/0/vera/projections/a"])
    other.base_model.vera_B["default"].copy_(tensors["shared/0/vera/projections/b"])
    for role in roles:
        pieces = [placed.piece for placed in handle.placed if placed.site.role == role]
        for piece, layer in zip(pieces, exact.peft_layers(other, names[role]), strict=True):
            layer.vera_lambda_d["default"].data = piece.scale_d.detach().clone()
            layer.vera_lambda_b["default"].data = piece.scale_b.detach().clone()
    exact.check_peft(handle, model, other, "llama")


def test_a_copy_has_a_pair_of_its_own() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, SPEC)
    perturb(handle)
    twin = copy.deepcopy(model)
    inputs = exact.batch("llama")
    before = exact.run(model, inputs)
    for tensor in pair(inlay.attached(twin)["default"]):
        tensor.data.zero_()
    assert torch.equal(exact.run(model, inputs), before)
    assert relative_error(exact.run(twin, inputs), before) > 1e-3
