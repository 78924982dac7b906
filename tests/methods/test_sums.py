"""Sums across kinds of pieces: they train, save, load, are mixed by row, and merge or say why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import inlay
from inlay.errors import NotFoldableError
from inlay.laws.case import perturb
from inlay.laws.compare import model_output
from tests import zoo
from tests.methods import exact

THREE = (
    inlay.LoRA(rank=2)
    + inlay.Prefix(length=3, mlp=4)
    + inlay.Houlsby(bottleneck=3, at=("attn", "mlp"))
)


def three(family: str, folder: Path) -> tuple[Any, inlay.Inlay]:
    model = zoo.fresh(family)
    return model, inlay.attach(model, THREE, name="sum")


def fused(family: str, folder: Path) -> tuple[Any, inlay.Inlay]:
    files = {}
    for seed in (1, 2):
        handle = inlay.attach(zoo.fresh(family), inlay.Pfeiffer(bottleneck=3, std=0.3))
        torch.manual_seed(seed)
        perturb(handle)
        files[f"t{seed}"] = handle.save(folder / f"t{seed}.safetensors")
    model = zoo.fresh(family)
    return model, inlay.fuse(model, files, name="sum", plus=inlay.BitFit())


BUILD = {"LoRA + Prefix + Houlsby": three, "Fusion + BitFit": fused}
CASES = [(name, family) for name in BUILD for family in ("bert", "gpt2", "t5")]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_a_sum_trains_and_is_saved_loaded_and_mixed(name: str, family: str, tmp_path: Path) -> None:
    model, handle = BUILD[name](family, tmp_path)
    before = {key: tensor.clone() for key, tensor in handle.training_state().items()}
    inputs = exact.batch(family, count=3)
    optimiser = torch.optim.AdamW(handle.parameters(), lr=1e-2)
    for step in range(3):
        optimiser.zero_grad()
        loss = model_output(model, inputs).logsumexp(-1).mean()
        penalty = handle.penalty()
        (loss if penalty is None else loss + penalty).backward()
        optimiser.step()
        handle.after_step((step + 1) / 3)
    after = handle.training_state()
    moved = {key.rpartition(":")[2] for key in after if not torch.equal(after[key], before[key])}
    for index, method in enumerate(handle.spec.methods):
        part = [key for key in after if f"/{index}." in key or key.startswith(f"shared.{index}/")]
        assert any(not torch.equal(after[key], before[key]) for key in part), (method, moved)
    path = handle.save(tmp_path / "sum.safetensors")
    other = zoo.fresh(family)
    loaded = inlay.load(other, path)
    assert loaded.spec == handle.spec.exported()
    torch.testing.assert_close(exact.run(other, inputs), exact.run(model, inputs))
    inlay.attach(other, inlay.IA3(), name="ia3")
    perturb(inlay.attached(other)["ia3"])
    names = ["sum", None, "ia3"]
    with inlay.rows(other, names):
        mixed = exact.run(other, inputs)
    for row, which in enumerate(names):
        with inlay.rows(other, [which]):
            alone = exact.run(other, {key: value[row : row + 1] for key, value in inputs.items()})
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "family"), [case for case in CASES if case[1] == "bert"])
def test_what_cannot_be_merged_is_named_before_the_first_write(
    name: str, family: str, tmp_path: Path
) -> None:
    model, handle = BUILD[name](family, tmp_path)
    perturb(handle)
    weights = {key: p.clone() for key, p in model.named_parameters() if "inlays" not in key}
    kinds = {"LoRA + Prefix + Houlsby": "Prefix|Houlsby", "Fusion + BitFit": "Fusion"}
    with pytest.raises(NotFoldableError, match=rf"^({kinds[name]}) at encoder\.\d\.\S+ cannot be"):
        handle.merge()
    assert handle.attached
    assert all(torch.equal(model.get_parameter(key), tensor) for key, tensor in weights.items())
