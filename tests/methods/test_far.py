"""FAR, exactly: priming, the nodes that move most, and training of these alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import inlay
from inlay.architectures.resolve import resolve
from inlay.errors import SpecError
from inlay.training import fit, prepare
from tests import zoo
from tests.methods import exact
from tests.training import tiny

DATA = tiny.examples(12)
SPEC = inlay.FAR(learners=0.25, priming=5, priming_lr=1e-2)


def prepared(model: Any, spec: inlay.Method = SPEC) -> dict[int, Any]:
    options = {"batch_size": 6, "console": tiny.quiet()}
    return dict(prepare(model, spec, tiny.task(model), DATA, **options))


def primed(model: Any) -> Any:
    """A copy of the base after the priming, by hand: AdamW on the feed-forward layers."""
    model = copy.deepcopy(model)
    weights = [p for n, p in model.named_parameters() if ".mlp." in n]
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is weight for weight in weights))
    optimiser = torch.optim.AdamW(weights, 1e-2, weight_decay=0.0)
    task = tiny.task(model)
    losses: list[Any] = []

    class Seen(inlay.FAR, listed=False):
        def prepare(self, base: Any, sites: Any, batches: Any) -> Any:
            losses.extend(batches)
            for loss in [*losses, *losses, *losses][: self.priming]:
                for weight in weights:
                    weight.requires_grad_(True)
                loss().backward()
                optimiser.step()
                optimiser.zero_grad()
            return {}

    seen = Seen(learners=0.25, priming=5, priming_lr=1e-2)
    prepare(model, seen, task, DATA, batch_size=6, console=tiny.quiet())
    assert len(losses) == 2
    return model


def test_the_nodes_that_moved_most_are_chosen_and_the_base_is_put_back() -> None:
    model = tiny.base()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    other = primed(model)
    chosen = prepared(model)[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None, name
    assert {name.split(".", 2)[2] for name in chosen} == {"mlp.up", "mlp.gate", "mlp.down"}
    for site in resolve(other).sites:
        if site.name not in chosen:
            continue
        original = before[next(n for n, m in other.named_modules() if m is site.host) + ".weight"]
        distance = (site.weight().detach() - original).abs().sum(1)
        count = int(0.25 * site.d_out)
        expected = distance.argsort(descending=True)[:count].sort().values
        assert chosen[site.name].tolist() == expected.tolist(), site.name


def test_only_the_learners_have_parameters_and_only_they_change(tmp_path: Path) -> None:
    model = tiny.base()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    inputs = {"input_ids": torch.tensor([[3, 4, 5, 6]])}
    base = model(**inputs).logits
    result = prepared(model)
    handle = inlay.attach(model, SPEC, prepared=result)
    assert torch.equal(model(**inputs).logits, base)
    for placed in handle.placed:
        nodes = len(result[0][placed.site.name])
        assert [p.shape for p in placed.piece.parameters()] == [(nodes, placed.site.d_in)]
    assert not any(model.get_parameter(name).requires_grad for name in before)
    fit(model, handle, tiny.task(model), DATA, prepared=result, steps=4, console=tiny.quiet())
    assert all(torch.equal(model.get_parameter(name), p) for name, p in before.items())
    assert all(model.get_parameter(name).grad is None for name in before)
    path = handle.save(tmp_path / "far.safetensors")
    model.eval()
    attached = model(**inputs).logits
    other = tiny.base()
    loaded = inlay.load(other, path)
    assert torch.equal(other(**inputs).logits, attached)
    loaded.merge()
    torch.testing.assert_close(other(**inputs).logits, attached, rtol=1e-6, atol=1e-6)
    for placed in handle.placed:
        host = next(name for name, module in model.named_modules() if module is placed.site.host)
        changed = (other.get_parameter(f"{host}.weight") != before[f"{host}.weight"]).any(1)
        assert set(changed.nonzero().flatten().tolist()) <= set(placed.piece.nodes.tolist())
        before.pop(f"{host}.weight")
    assert all(torch.equal(other.get_parameter(name), p) for name, p in before.items())


def test_what_a_step_computes_grows_with_the_learners_alone() -> None:
    """Products of a step = those of the frozen base + ρ times those of all nodes."""
    inputs = {"input_ids": torch.tensor([[3, 4, 5, 6]])}

    def products(learners: float) -> tuple[int, int]:
        model = tiny.base()
        handle = inlay.attach(model, inlay.FAR(learners=learners), prepared={0: {}})
        with FlopCounterMode(display=False) as counter:
            model(**inputs).logits.sum().backward()
        return counter.get_total_flops(), sum(p.grad.numel() for p in handle.parameters())

    quarter, half, whole = products(0.25), products(0.5), products(1.0)
    assert whole[1] == 2 * half[1] == 4 * quarter[1] == 2 * 3 * 16 * 24
    assert 0 < whole[0] - half[0] == 2 * (half[0] - quarter[0])


def test_the_file_is_the_rows_and_their_numbers(tmp_path: Path) -> None:
    handle = inlay.attach(zoo.fresh("bert"), SPEC, prepared={0: {}})
    path = handle.save(tmp_path / "far.safetensors")
    numbers = sum(len(p.piece.nodes) for p in handle.placed)
    payload = sum(t.numel() * t.element_size() for t in handle.named_tensors().values())
    assert payload == 4 * handle.count() + 4 * numbers
    assert path.stat().st_size >= payload


def test_a_trained_head_learns_in_the_priming() -> None:
    """The head moves too, and is dropped: what learns is what requires gradients."""
    model = zoo.fresh("bert")
    handle = inlay.attach(model, inlay.Head(labels=("a", "b")))
    head = next(iter(handle.parameters()))
    before = head.detach().clone()
    sites = [site for site in resolve(model).sites if site.role == "mlp.up"]
    ids = torch.tensor([[9, 20, 31]])

    def loss() -> torch.Tensor:
        hidden = model.base_model(ids).last_hidden_state
        return handle.placed[0].piece(hidden, torch.ones_like(ids)).square().sum()

    SPEC.prepare(model, sites, [loss])
    assert not torch.equal(head, before)


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5", "phi3"])
def test_starts_as_the_base(family: str) -> None:
    model, inputs = zoo.fresh(family), exact.batch(family)
    base = exact.run(model, inputs)
    inlay.attach(model, SPEC, prepared={0: {}})
    assert torch.equal(exact.run(model, inputs), base)


def test_a_quantised_base_is_refused() -> None:
    model = tiny.base()
    site = next(s for s in resolve(model).sites if s.role == "mlp.up")
    site.host.weight = nn.Parameter(site.host.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(
        SpecError, match="FAR needs gradients of .*mlp.up are quantised; open the base without"
    ):
        SPEC.prepare(model, [site], [])


def test_refusals() -> None:
    with pytest.raises(SpecError, match="learners is a share of at most 1"):
        inlay.FAR(learners=1.1)
    with pytest.raises(SpecError, match="priming must be a number above 0"):
        inlay.FAR(priming=0)
