"""MAM, UniPELT and S4, exactly: what they expand to, and how large that is."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import inlay
from inlay.architectures.resolve import resolve
from inlay.errors import SpecError
from inlay.methods.s4 import spindle
from tests import zoo
from tests.methods import exact
from tests.methods.test_counts import count, meta


def total(model: object, spec: inlay.Method) -> int:
    """How many parameters the expanded spec trains."""
    methods = spec.expand(resolve(model).sites).methods  # type: ignore[arg-type]
    return sum(count(model, method) for method in methods)


def test_mam_is_its_sum() -> None:
    handle = inlay.attach(zoo.fresh("bart"), inlay.MAM(length=2, bottleneck=3, mlp=4))
    assert handle.spec == inlay.Prefix(length=2, mlp=4) + inlay.Parallel(bottleneck=3, scale=4.0)
    assert {p.site.role for p in handle.placed} == {"attn.kv", "cross.kv", "mlp"}


def test_mam_counts_as_published() -> None:
    """Card 29: BART-large, 27.4M = 6.7 %."""
    config = hf.BartConfig()
    with torch.device("meta"):
        model = hf.BartForConditionalGeneration(config)
    expected = 36 * 30 * 2 * 1024 + 24 * (2 * 1024 * 512 + 512 + 1024)
    assert total(model, inlay.MAM(mlp=None)) == expected
    assert expected / sum(p.numel() for p in model.parameters()) == pytest.approx(0.067, abs=1e-3)


def test_mam_begins_as_its_prefix() -> None:
    model, inputs = zoo.fresh("bart"), exact.batch("bart")
    torch.manual_seed(0)
    prefix = inlay.attach(model, inlay.Prefix(length=2, mlp=None))
    expected = exact.run(model, inputs)
    prefix.detach()
    torch.manual_seed(0)
    inlay.attach(model, inlay.MAM(length=2, bottleneck=3, mlp=None))
    torch.testing.assert_close(exact.run(model, inputs), expected)


def test_unipelt_counts_as_published() -> None:
    """Card 30: 1.41M = 1.29 % of BERT-base, the prefix's MLP dropped; gates 36,912 of it."""
    model = meta("bert-base")
    parts = 184_320 + 894_528 + 294_912
    assert total(model, inlay.UniPELT(mlp=None)) == parts + 36_912
    size = sum(p.numel() for p in model.parameters())
    assert (parts + 36_912) / size == pytest.approx(0.0129, abs=1e-4)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_unipelt_trains(family: str) -> None:
    exact.train(family, inlay.UniPELT(rank=2, length=2, bottleneck=3, mlp=4))


@pytest.mark.parametrize(
    ("depth", "sizes"),
    [(12, (2, 4, 4, 2)), (24, (4, 8, 8, 4)), (30, (5, 10, 10, 5)), (6, (1, 2, 2, 1))],
)
def test_groups_are_a_spindle(depth: int, sizes: tuple[int, ...]) -> None:
    assert spindle(depth) == sizes


@pytest.mark.parametrize("depth", range(1, 49))
def test_groups_hold_every_layer(depth: int) -> None:
    first, second, third, fourth = spindle(depth)
    assert first + second + third + fourth == depth
    if depth == 6 or depth >= 8:
        assert 0 < first < second == third > fourth > 0


@pytest.mark.parametrize("base", ["bert-base", "t5-base", "llama"])
@pytest.mark.parametrize("budget", [0.005, 0.02])
def test_s4_fills_its_budget_from_below_and_evenly(base: str, budget: float) -> None:
    model = meta(base)
    chart = resolve(model)
    spec = inlay.S4(budget=budget)
    methods = spec.expand(chart.sites).methods
    by_layer: dict[tuple[str, int], int] = {}
    names: dict[tuple[str, int], set[str]] = {}
    for method in methods:
        per_layer = count(model, method) // len(method.at.layers)
        for layer in method.at.layers:
            key = (method.at.stacks[0], layer)
            by_layer[key] = by_layer.get(key, 0) + per_layer
            names.setdefault(key, set()).add(type(method).__name__)
    share = budget * sum(p.numel() for p in model.parameters()) / len(by_layer)
    for key, size in by_layer.items():
        assert 0.75 * share < size <= share, (key, size, share)
    for stack in chart.stacks:
        layer = 0
        for size, expected in zip(
            spindle(len(stack.layers)),
            (
                {"Houlsby", "LoRA"},
                {"Houlsby", "Prefix"},
                {"Houlsby", "Prefix", "BitFit"},
                {"Prefix", "BitFit", "LoRA"},
            ),
            strict=True,
        ):
            for _ in range(size):
                assert names[stack.name, layer] == expected
                layer += 1


def test_s4_says_when_the_budget_is_too_small() -> None:
    with pytest.raises(SpecError, match="give a larger budget"):
        inlay.attach(zoo.fresh("llama"), inlay.S4(budget=1e-4))
