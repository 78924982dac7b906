"""Laws about batches: rows do not meet, padding is inert."""

from __future__ import annotations

import torch

from inlay.laws.batches import Inputs, pad_batch, row_output
from inlay.laws.case import Broken, Case, Learner, NotApplicable
from inlay.laws.compare import (
    gradient_error,
    model_output,
    require_close,
    take_gradients,
    valid_paddings,
    weighted_sum,
    weighted_sum_of_rows,
)


def rows_do_not_meet(case: Case) -> float:
    """A mixed batch computes what each row computes alone with its own inlay."""
    singles = case.inputs(4)
    names: list[str | None] = ["law", None, "law-b", "law"]
    worst = 0.0
    with case.isolated():
        ways = valid_paddings(case, singles)
    with case.isolated(), case.learner() as first, case.learner("law-b", seed=5) as second:
        with torch.no_grad():
            alone = []
            for name, single in zip(names, singles, strict=True):
                with case.serving([name]):
                    alone.append(model_output(case.model, single))
        for side, pad in ways:
            with torch.no_grad(), case.serving(names):
                mixed = model_output(case.model, pad(singles))
            for number, single in enumerate(singles):
                result = row_output(case.chart, mixed, number, single, side)
                what = f"row {number} ({names[number]}, padded {side})"
                worst = max(worst, require_close(case, result, alone[number], what, 3))
        if case.changes_outputs:
            worst = max(worst, _gradients_do_not_meet(case, [first, second], names, singles))
    return worst


def _gradients_do_not_meet(
    case: Case, handles: list[Learner], names: list[str | None], singles: list[Inputs]
) -> float:
    for name, single in zip(names, singles, strict=True):
        with case.serving([name]):
            output = model_output(case.model, single)
        if output.requires_grad:
            weighted_sum(output).backward()
    alone = take_gradients(handles)
    with case.serving(names):
        output = model_output(case.model, pad_batch(singles))
    weighted_sum_of_rows(case, output, singles).backward()
    error = gradient_error(take_gradients(handles), alone)
    if not error <= case.tolerance * 10:
        raise Broken(f"gradients of a mixed batch are off by {error:.2e}")
    return error


def padding_is_inert(case: Case) -> float:
    """A padded row computes what the row alone does, on every side where the base does so."""
    singles = case.inputs(3)
    if not case.chart.reads_text:
        raise NotApplicable("images and sound are not padded")
    worst = 0.0
    with case.isolated():
        ways = valid_paddings(case, singles)
    with case.isolated(), case.learner(), torch.no_grad():
        alone = [model_output(case.model, single) for single in singles]
        for side, pad in ways:
            output = model_output(case.model, pad(singles))
            for number, single in enumerate(singles):
                result = row_output(case.chart, output, number, single, side)
                what = f"row {number}, padded {side}"
                worst = max(worst, require_close(case, result, alone[number], what, 3))
    return worst
