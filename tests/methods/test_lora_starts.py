"""LoRA's kin, exactly: scaling, starting values and learning rates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import inlay
from inlay.errors import SpecError
from inlay.laws.compare import relative_error
from tests import zoo
from tests.methods import exact


@pytest.mark.parametrize(("stabilised", "scale"), [(False, 2.0), (True, 4.0)])
def test_scale(stabilised: bool, scale: float) -> None:
    """α/R, or α/√R, as in peft."""
    _, handle = exact.moved("llama", inlay.LoRA(rank=4, alpha=8.0, stabilised=stabilised))
    piece = exact.first(handle).piece
    exact.expect(exact.first(handle), scale * piece.b @ piece.a)


@pytest.mark.parametrize("start", ["principal", "orthogonal"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "t5"])
def test_starts_as_the_base(family: str, start: str) -> None:
    model, inputs = zoo.fresh(family), exact.batch(family)
    base = exact.run(model, inputs)
    inlay.attach(model, inlay.LoRA(rank=4, start=start))
    assert relative_error(exact.run(model, inputs), base) < 1e-5


def test_the_principal_start_is_the_best_update_of_its_rank() -> None:
    for spec in (
        inlay.LoRA(rank=4, start="principal"),
        inlay.LoRA(rank=4, alpha=3.0, stabilised=True, start="principal"),
    ):
        placed = exact.first(inlay.attach(zoo.fresh("llama"), spec))
        weight, piece = placed.site.weight().detach(), placed.piece
        rest = weight - spec.scale * (piece.b @ piece.a).detach()
        values = torch.linalg.svdvals(weight)
        expected = torch.cat((values[4:], values.new_zeros(4)))
        torch.testing.assert_close(torch.linalg.svdvals(rest), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stabilised", [False, True])
def test_the_file_of_a_principal_start_is_a_lora_of_twice_the_rank(
    stabilised: bool, tmp_path: Path
) -> None:
    spec = inlay.LoRA(rank=2, start="principal", stabilised=stabilised)
    model, handle = exact.train("llama", spec)
    other = zoo.fresh("llama")
    loaded = inlay.load(other, handle.save(tmp_path / "pissa.safetensors"))
    alpha = 16 * (2**0.5 if stabilised else 2)
    assert loaded.spec == inlay.LoRA(rank=4, alpha=alpha, stabilised=stabilised)
    inputs = exact.batch("llama")
    torch.testing.assert_close(exact.run(other, inputs), exact.run(model, inputs))


@pytest.mark.parametrize("start", ["principal", "orthogonal"])
def test_merge(start: str) -> None:
    for family in ("llama", "gpt2"):
        exact.check_merge(family, inlay.LoRA(rank=4, start=start))


def test_an_orthogonal_start_has_no_zero_factor() -> None:
    piece = exact.first(inlay.attach(zoo.fresh("llama"), inlay.LoRA(rank=4, start="orthogonal")))
    assert (piece.piece.a != 0).all() and (piece.piece.b != 0).all()
    torch.testing.assert_close(
        piece.piece.b @ piece.piece.a, torch.zeros(32, 32), rtol=0, atol=1e-6
    )


def test_rates() -> None:
    handle = inlay.attach(zoo.fresh("llama"), inlay.LoRA(rank=2, ratio=16.0))
    a, b = handle.parameter_groups(1e-4)
    assert (a.learning_rate, b.learning_rate) == (1e-4, pytest.approx(16e-4))
    assert {id(p) for p in a.parameters} == {id(p.piece.a) for p in handle.placed}
    assert {id(p) for p in b.parameters} == {id(p.piece.b) for p in handle.placed}
    assert len(inlay.attach(zoo.fresh("llama"), inlay.LoRA()).parameter_groups()) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": "svd"}, 'start is "zero", "orthogonal" or "principal"'),
        ({"rank": 3, "start": "orthogonal"}, "needs an even rank, not 3"),
        ({"ratio": 0.0}, "ratio must be a number above 0"),
    ],
)
def test_refusals(fields: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        inlay.LoRA(**fields)


def test_a_principal_start_needs_room_for_both() -> None:
    with pytest.raises(SpecError, match="rank 40 is larger than the matrix"):
        inlay.attach(zoo.fresh("llama"), inlay.LoRA(rank=20, start="principal"))
