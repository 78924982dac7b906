"""What exact tests of single methods share."""

from __future__ import annotations

import types
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import inlay
from inlay.core.method import Placed, Spec
from inlay.laws.case import perturb
from inlay.laws.compare import model_output, relative_error
from tests import zoo

TWO_STACKS = ("t5", "t5-gated", "mt5", "bart", "marian")


def batch(family: str, count: int = 2, length: int = 7) -> dict[str, Tensor]:
    """Inputs `[count, length]` for a family of the zoo, without padding."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(8, 99, (count, length), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family in TWO_STACKS:
        inputs["decoder_input_ids"] = torch.randint(8, 99, (count, 4), generator=generator)
    return inputs


def run(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The logits, without gradients."""
    with torch.no_grad():
        return model_output(model, inputs)


def moved(family: str, spec: Spec) -> tuple[Any, inlay.Inlay]:
    """A new model in float64 with this spec attached, every trained parameter moved at random."""
    model = zoo.fresh(family)
    handle = inlay.attach(model, spec)
    torch.manual_seed(5)
    perturb(handle)
    return model.double(), handle


def first(handle: inlay.Inlay) -> Placed:
    """The first piece in its place."""
    return handle.placed[0]


def host_input(placed: Placed) -> Tensor:
    """Random x for the module of a piece, `[2, 5, d_in]` in float64."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, 5, placed.site.d_in, generator=generator, dtype=torch.float64)


def expect(placed: Placed, change: Tensor) -> None:
    """Check that a projection computes `x (W + change)ᵀ + b`, for its own columns, in float64."""
    site = placed.site
    x = host_input(placed)
    bias = site.bias()
    expected = x @ (site.weight() + change).T + (0 if bias is None else bias)
    output = site.host(x)
    output = output if site.part is None else site.part.take(output)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


def check_start(family: str, spec: Spec) -> None:
    """The method just attached is the base, bit for bit."""
    model, inputs = zoo.fresh(family), batch(family)
    base = run(model, inputs)
    inlay.attach(model, spec)
    torch.testing.assert_close(run(model, inputs), base, rtol=0, atol=1e-6)


def check_merge(family: str, spec: Spec) -> None:
    """Merged computes what attached computes, and differs from the base."""
    model, handle = moved(family, spec)
    inputs = batch(family)
    attached = run(model, inputs)
    handle.merge()
    assert not inlay.attached(model)
    assert relative_error(run(model, inputs), attached) < 1e-6  # folded in fp32
    assert relative_error(run(zoo.fresh(family), inputs), attached) > 1e-3


def train(family: str, spec: Spec, steps: int = 3) -> tuple[Any, inlay.Inlay]:
    """A model after a few steps of AdamW on a spec; no parameter of the base has moved a bit."""
    model = zoo.fresh(family)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    inputs = batch(family)
    base = run(model, inputs)
    handle = inlay.attach(model, spec)
    optimiser = torch.optim.AdamW(handle.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        model_output(model, inputs).logsumexp(-1).mean().backward()
        optimiser.step()
    assert relative_error(run(model, inputs), base) > 1e-4
    for name, p in model.named_parameters():
        if name in before:
            assert torch.equal(p, before[name]) and p.grad is None, name
    return model, handle


def peft() -> types.ModuleType:
    """The module `peft`; skips the test where it is not installed."""
    return pytest.importorskip("peft", reason="peft is in the extra 'bench' only")


def with_peft(family: str, config: Any) -> Any:
    """A new model of the family with what peft makes of a configuration."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls what transformers deprecates
        return peft().get_peft_model(zoo.fresh(family), config).eval()


def peft_layers(model: Any, projection: str) -> list[Any]:
    """What peft made of the modules of that name, in the order of the layers."""
    return [module for name, module in model.named_modules() if name.endswith("." + projection)]


def check_peft(handle: inlay.Inlay, model: Any, other: Any, family: str) -> None:
    """Both models compute the same logits, and gradients of the same total size."""
    inputs = batch(family)
    ours, theirs = model_output(model, inputs), model_output(other, inputs)
    assert relative_error(ours, theirs) < 1e-6
    norms = []
    for logits, parameters in (
        (ours, list(handle.parameters())),
        (theirs, [p for p in other.parameters() if p.requires_grad]),
    ):
        assert sum(p.numel() for p in parameters) == handle.count()
        gradients = torch.autograd.grad(logits.logsumexp(-1).mean(), parameters)
        norms.append(torch.stack([g.double().norm() for g in gradients]).norm())
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-4, atol=0)
