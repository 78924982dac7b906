"""fit_budget: the size that comes closest to a budget from below, for every method that has one."""

from __future__ import annotations

import contextlib

import pytest

import inlay
from inlay.budget import budget_of, count_parameters
from inlay.errors import InlayError, SpecError
from tests import zoo

SIZED = [
    kind for kind in inlay.METHODS.values() if kind.__module__.startswith("inlay.") and kind.size
]


def family_of(kind: type[inlay.Method]) -> str:
    return "roberta" if kind is inlay.WARP else "llama"


@pytest.mark.parametrize("kind", SIZED, ids=lambda kind: kind.__name__)
def test_the_largest_size_that_fits(kind: type[inlay.Method]) -> None:
    model = zoo.fresh(family_of(kind))
    example = kind.examples[0]
    smallest = count_parameters(model, example.with_size(1))
    budget = 3 * smallest + 1
    method = inlay.fit_budget(model, example, budget)
    count = count_parameters(model, method)
    assert smallest <= count <= budget
    sizes = []
    for entry in (method, example.with_size(1)):
        sized = entry.inner if isinstance(entry, (inlay.Gate, inlay.AdaMix)) else entry
        sizes.append(getattr(sized, entry.size))
    steps = round(sizes[0] / sizes[1])  # a size may be a share, or come in steps
    assert method == example.with_size(steps)
    with contextlib.suppress(InlayError):  # larger than the matrices
        more = count_parameters(model, example.with_size(steps + 1))
        assert more > budget or more == count  # LoKr's ranks end where its matrices are whole


def test_a_count_is_that_of_the_file() -> None:
    model = zoo.fresh("llama")
    for spec in (
        inlay.LoRA(rank=3) + inlay.Prefix(length=2, mlp=7),
        inlay.AdaMix(copies=3, inner=inlay.LoRA(rank=2)),
        inlay.VeRA(rank=5),
    ):
        counted = count_parameters(model, spec)
        handle = inlay.attach(model, spec)
        frozen = sum(t.numel() for n, t in handle.named_tensors().items() if "shared/" in n)
        assert counted == sum(t.numel() for t in handle.named_tensors().values()) - frozen
        handle.detach()


def test_budgets() -> None:
    model = zoo.fresh("llama")
    size = sum(p.numel() for p in model.parameters())
    assert budget_of(model, 1234) == budget_of(model, "1234") == 1234
    assert budget_of(model, "1.5k") == 1500 and budget_of(model, "2M") == 2_000_000
    assert budget_of(model, "10%") == budget_of(model, "10 %") == size // 10
    assert budget_of(model, "4MB") == 1_000_000 and budget_of(model, "4MiB") == 2**20
    inlay.attach(model, inlay.LoRA())
    assert budget_of(model, "10%") == size // 10  # of the base alone


@pytest.mark.parametrize("budget", ["", "many", "-1", "0", 0, "5 parsecs", True, "1e3"])
def test_what_is_no_budget_is_refused(budget: object) -> None:
    with pytest.raises(SpecError, match="a budget is a number of parameters"):
        budget_of(zoo.fresh("llama"), budget)  # type: ignore[arg-type]


def test_other_fields_stay() -> None:
    method = inlay.fit_budget(zoo.fresh("llama"), inlay.LoRA(alpha=32.0, at="mlp.up"), "5%")
    assert (method.alpha, method.at) == (32.0, inlay.Where(("mlp.up",)))


def test_refusals() -> None:
    model = zoo.fresh("llama")
    with pytest.raises(SpecError, match="BitFit has no rank, bottleneck or length to fit"):
        inlay.fit_budget(model, inlay.BitFit, "1%")
    with pytest.raises(SpecError, match=r"LoRA has .* parameters at least .* larger budget"):
        inlay.fit_budget(model, inlay.LoRA, 3)
