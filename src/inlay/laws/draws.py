"""The law of draws: what a piece draws per pass is the same wherever it is drawn again."""

from __future__ import annotations

import torch

from inlay.handle import Inlay, rows
from inlay.laws.batches import Inputs, pad_batch, row_output
from inlay.laws.case import Broken, Case, NotApplicable
from inlay.laws.compare import (
    model_output,
    require_close,
    take_gradients,
    training_without_dropout,
    valid_paddings,
    weighted_sum,
)
from inlay.laws.learning import compare_recomputed

SEEDS = 64
"""In how many passes every parameter must have had a gradient."""


def draws_repeat(case: Case) -> float:
    """Draws are equal for all rows of a group and in recomputation, and differ between passes.

    Over enough passes every trained parameter gets a gradient.
    """
    if not case.draws:
        raise NotApplicable("nothing is drawn at random")
    singles = case.inputs(4)
    with case.isolated():
        ways = valid_paddings(case, singles)
    with case.isolated(), case.inlay() as first, case.inlay("law-b", seed=5) as second:
        with training_without_dropout(case.model):
            side, pad = ways[0]
            worst = _rows_agree(case, pad(singles), singles, side)
            _passes_differ(case, singles[0])
            _everything_learns(case, first, pad(singles))
        if case.model.supports_gradient_checkpointing:
            batch = pad_batch(singles[:2])
            worst = max(worst, compare_recomputed(case, [first, second], batch))
    return worst


def _rows_agree(case: Case, batch: Inputs, singles: list[Inputs], side: str) -> float:
    """A mixed batch computes what its rows compute alone where random numbers start equally."""
    names: list[str | None] = ["law", None, "law-b", "law"]
    worst = 0.0
    with torch.no_grad():
        with rows(case.model, names):
            mixed = model_output(case.model, batch, seed=3)
        for number, (name, single) in enumerate(zip(names, singles, strict=True)):
            with rows(case.model, [name]):
                alone = model_output(case.model, single, seed=3)
            result = row_output(case.chart, mixed, number, single, side)
            what = f"row {number} ({name}) with equal draws"
            worst = max(worst, require_close(case, result, alone, what, 3))
    return worst


def _passes_differ(case: Case, single: Inputs) -> None:
    """Raise Broken where the seed of a pass changes nothing."""
    with torch.no_grad(), rows(case.model, ["law"]):
        first = model_output(case.model, single, seed=0)
        others = (model_output(case.model, single, seed=seed) for seed in range(1, SEEDS))
        if all(torch.equal(first, other) for other in others):
            raise Broken("every pass draws the same")


def _everything_learns(case: Case, handle: Inlay, batch: Inputs) -> None:
    """Raise Broken where a parameter has no gradient after many passes."""
    remaining = {id(p) for p in handle.parameters()}
    with rows(case.model, ["law"]):
        for seed in range(SEEDS):
            weighted_sum(model_output(case.model, batch, seed=seed)).backward()
            remaining -= {id(p) for p in handle.parameters() if p.grad is not None and p.grad.any()}
            if not remaining:
                break
    take_gradients([handle])
    names = [name for name, p in case.model.named_parameters() if id(p) in remaining]
    if names:
        raise Broken(f"{names[0]} got no gradient in {SEEDS} passes")
