"""Laws about batches: rows do not meet, padding is inert."""

from __future__ import annotations

import torch
from torch import Tensor

from inlay.handle import Inlay, rows
from inlay.laws.case import (
    Broken,
    Case,
    NotApplicable,
    aligned,
    answer,
    join,
    near,
    paddings,
    weigh,
)


def rows_apart(case: Case) -> float:
    """A mixed batch computes what each row computes alone with its own inlay."""
    singles = case.inputs(4)
    names: list[str | None] = ["law", None, "law-b", "law"]
    worst = 0.0
    with case.quiet():
        ways = paddings(case, singles)
    with case.quiet(), case.inlay() as a, case.inlay("law-b", seed=5) as b:
        for side, pad in ways:
            with torch.no_grad():
                alone = []
                for name, single in zip(names, singles, strict=True):
                    with rows(case.model, [name]):
                        alone.append(answer(case.model, single))
                with rows(case.model, names):
                    mixed = answer(case.model, pad(singles))
            for number, single in enumerate(singles):
                got = aligned(case, mixed, number, single, side)
                what = f"row {number} ({names[number]}, padded {side})"
                worst = max(worst, near(case, got, alone[number], what, 3))
        if case.learns:
            worst = max(worst, _gradients_apart(case, [a, b], names, singles))
    return worst


def _gradients_apart(
    case: Case, handles: list[Inlay], names: list[str | None], singles: list[dict[str, Tensor]]
) -> float:
    def total(name: str | None, single: dict[str, Tensor]) -> None:
        with rows(case.model, [name]):
            out = answer(case.model, single)
        if out.requires_grad:
            weigh(out).backward()

    parameters = [p for handle in handles for p in handle.parameters()]
    for name, single in zip(names, singles, strict=True):
        total(name, single)
    alone = [p.grad.clone() for p in parameters if p.grad is not None]
    for p in parameters:
        p.grad = None
    with rows(case.model, names):
        out = answer(case.model, join(singles))
    pairs = enumerate(singles)
    sum(weigh(aligned(case, out, number, single, "right")) for number, single in pairs).backward()  # type: ignore[union-attr]
    mixed = [p.grad for p in parameters if p.grad is not None]
    for p in parameters:
        p.grad = None
    if len(mixed) != len(alone):
        raise Broken("a mixed batch gives gradients to other numbers than its rows alone")
    size = max(float(g.abs().max()) for g in alone)
    errors = [float((x - y).abs().max()) for x, y in zip(mixed, alone, strict=True)]
    worst = max(errors) / max(size, 1e-6)
    if not worst <= case.tolerance * 10:
        raise Broken(f"gradients of a mixed batch are off by {worst:.2e}")
    return worst


def padding_inert(case: Case) -> float:
    """A padded row computes what the row alone does, on every side where the base does so."""
    singles = case.inputs(3)
    if case.chart.kind == "vision":
        raise NotApplicable("images are not padded")
    worst = 0.0
    with case.quiet():
        ways = paddings(case, singles)
    with case.quiet(), case.inlay(), torch.no_grad():
        alone = [answer(case.model, single) for single in singles]
        for side, pad in ways:
            whole = answer(case.model, pad(singles))
            for i, single in enumerate(singles):
                got = aligned(case, whole, i, single, side)
                worst = max(worst, near(case, got, alone[i], f"row {i}, padded {side}", 3))
    return worst
