"""FISH, exactly: squared gradients of single rows, the largest of all places, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import inlay
from inlay.architectures.resolve import resolve
from inlay.errors import SpecError
from inlay.methods.fish import fisher_information
from inlay.training import fit, prepare
from tests import zoo
from tests.training import tiny

DATA = tiny.examples(12)
SPEC = inlay.FISH(keep=0.05)


def prepared(model: Any, spec: inlay.Method = SPEC, **options: Any) -> dict[int, Any]:
    return dict(prepare(model, spec, tiny.task(model), DATA, console=tiny.quiet(), **options))


def by_hand(model: Any) -> dict[str, torch.Tensor]:
    """The mean squared gradients of single rows at twins of all weights, by site."""
    layers = max(site.layer or 0 for site in resolve(model).sites) + 1
    handle = inlay.attach(model, inlay.TopLayers(layers=layers))
    task = tiny.task(model)
    sums: dict[str, torch.Tensor] = {}
    for row in task.encode_all(DATA):
        batch = task.collate([row])
        loss, count = task.loss(task.outputs(model, batch), batch)
        handle.model.zero_grad()
        (loss / count).backward()
        for placed in handle.placed:
            gradients = [p.grad.flatten() for p in placed.piece.parameters()]
            squares = torch.cat(gradients).square() / len(DATA)
            sums[placed.site.name] = sums.get(placed.site.name, 0) + squares
    handle.detach()
    return sums


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "bert"])
def test_what_a_weight_matters_is_the_mean_square_of_single_gradients(family: str) -> None:
    """Also of fused and of transposed matrices, and of biases."""
    model = zoo.fresh(family)
    task = tiny.task(model)

    def loss(row: Any) -> torch.Tensor:
        batch = task.collate([row])
        total, count = task.loss(task.outputs(model, batch), batch)
        return total / count

    expected = by_hand(model)
    sites = [site for site in resolve(model).sites if site.name in expected]
    calls = [lambda row=row: loss(row) for row in task.encode_all(DATA)]
    scores = fisher_information(SPEC, sites, calls)
    assert scores.keys() == expected.keys()
    for name, score in scores.items():
        torch.testing.assert_close(score, expected[name], rtol=1e-4, atol=1e-9)


def test_the_largest_of_all_places_together_are_chosen() -> None:
    model = tiny.base()
    chosen = prepared(model)[0]
    scores = by_hand(model)
    assert scores.keys() == chosen.keys()
    total = sum(map(len, scores.values()))
    count = int(0.05 * total)
    assert sum(map(len, chosen.values())) == count
    threshold = torch.cat([*scores.values()]).sort(descending=True).values[count - 1]
    for name, positions in chosen.items():
        assert positions.tolist() == (scores[name] >= threshold).nonzero().flatten().tolist()
    assert len({len(positions) for positions in chosen.values()}) > 3  # not a share of each place


def test_the_same_rows_and_seed_choose_the_same() -> None:
    first, second = prepared(tiny.base())[0], prepared(tiny.base())[0]
    assert tiny.same(first, second)
    fewer = prepared(tiny.base(), inlay.FISH(keep=0.05, samples=2), seed=1)[0]
    assert not tiny.same(first, fewer) or first.keys() != fewer.keys()


def test_rows_come_one_by_one_and_so_many() -> None:
    model, calls = tiny.base(), []

    class Counted(tiny.Recite):
        name = "counted"

        def loss(self, outputs, batch):
            calls.append(len(batch.inputs["input_ids"]))
            return super().loss(outputs, batch)

    del inlay.tasks.TASKS["counted"]
    task = tiny.task(model, Counted)
    prepare(model, inlay.FISH(samples=5), task, DATA, batch_size=4, console=tiny.quiet())
    assert calls == [1] * 5
    prepare(model, inlay.Gate(inner=SPEC), task, DATA, batch_size=4, console=tiny.quiet())
    assert calls == [1] * 17


def test_exactly_so_many_weights_differ_after_training(tmp_path: Path) -> None:
    model = tiny.base()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    task = tiny.task(model)
    batch = task.collate(task.encode_all(DATA))
    base_loss = task.loss(task.outputs(model, batch), batch)[0]
    result = prepared(model)
    handle = inlay.attach(model, SPEC, prepared=result)
    assert torch.equal(task.loss(task.outputs(model, batch), batch)[0], base_loss)
    options = {"console": tiny.quiet(), "steps": 5, "batch_size": 12, "weight_decay": 0.1}
    fit(model, handle, task, DATA, prepared=result, **options)
    count = sum(map(len, result[0].values()))
    assert handle.count() == count == sum(int((p != 0).sum()) for p in handle.parameters())
    base = {n: p for n, p in model.named_parameters() if n in before}
    assert base.keys() == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in base.items())
    path = handle.save(tmp_path / "fish.safetensors")
    other = tiny.base()
    inlay.load(other, path).merge()
    changed = sum(int((p != before[name]).sum()) for name, p in other.named_parameters())
    assert changed == count
    loaded = inlay.load(tiny.base(), path)
    assert isinstance(loaded.spec, inlay.Sparse)
    torch.testing.assert_close(
        task.loss(task.outputs(other, batch), batch)[0],
        task.loss(task.outputs(model, batch), batch)[0],
    )


def test_a_place_may_have_no_chosen_weights(tmp_path: Path) -> None:
    model = tiny.base()
    result = prepared(model, inlay.FISH(keep=0.001), folder=tmp_path)
    again = prepared(model, inlay.FISH(keep=0.001), folder=tmp_path)  # from the folder's file
    assert tiny.same(result[0], again[0])
    spec = inlay.Gate(inner=inlay.FISH(keep=0.001), start=1.0)
    handle = inlay.attach(model, spec, prepared=result)
    assert any(len(p) == 0 for p in result[0].values())
    options = {"console": tiny.quiet(), "steps": 2, "batch_size": 12, "prepared": result}
    fit(model, handle, tiny.task(model), DATA, **options)
    other = tiny.base()
    inlay.load(other, handle.save(tmp_path / "gated.safetensors"))
    inputs = {"input_ids": torch.tensor([[3, 4, 5, 6]])}
    torch.testing.assert_close(other(**inputs).logits, model.eval()(**inputs).logits)


def test_a_quantised_base_is_refused() -> None:
    model = tiny.base()
    site = next(s for s in resolve(model).sites if s.role == "attn.q")
    site.host.weight = nn.Parameter(site.host.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(
        SpecError, match="FISH needs gradients of .*attn.q are quantised; open the base without"
    ):
        SPEC.prepare(model, [site], [])


def test_without_rows_there_is_nothing_to_look_at() -> None:
    model = tiny.base()
    with pytest.raises(inlay.InlayError, match="looks at training rows, and there are none"):
        prepare(model, SPEC, tiny.task(model), [], console=tiny.quiet())
