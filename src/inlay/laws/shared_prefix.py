"""The law of the shared prefix: run once for all rows, it computes what it does in every row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from inlay.handle import Inlay, rows
from inlay.laws.batches import Inputs, pad_batch, row_output
from inlay.laws.case import Broken, Case, NotApplicable
from inlay.laws.compare import (
    gradient_error,
    model_output,
    require_close,
    take_gradients,
    weighted_sum_of_rows,
)
from inlay.runtime.container import stack_hooks
from inlay.runtime.shared_prefix import PrefixRunner

OPENING = 10
"""Tokens that all rows of the law's batch begin with."""

GRADIENT_SLACK = 30
"""How much further gradients may be off: a relu near zero turns over with the last digit."""


def shared_prefix_computes_the_same(case: Case) -> float:
    """Prompts and common openings that run once give the outputs and gradients of rows alone."""
    if case.chart.kind != "decoder":
        raise NotApplicable("only a causal model can run the beginning of its rows once")
    names = ["law", "law-b", "law", "law", "law-b", "law"]
    worst = 0.0
    with case.isolated(), case.inlay() as first, case.inlay("law-b", seed=5) as second:
        prefix = stack_hooks(case.model)[0].prefix
        if prefix is None:
            raise NotApplicable("the prefix of this base cannot run separately")
        for opening in (0, OPENING):
            singles = _rows_with_opening(case, len(names), opening)
            batch, handles = pad_batch(singles), [first, second]
            with rows(case.model, names):
                separate = model_output(case.model, batch)
                gradients = _gradients(case, handles, separate, singles)
                with _in_every_row(prefix):
                    plain = model_output(case.model, batch)
                    expected = _gradients(case, handles, plain, singles)
            for number, single in enumerate(singles):
                result, right = (
                    row_output(case.chart, output.detach(), number, single, "right")
                    for output in (separate, plain)
                )
                what = f"row {number} after a shared prefix"
                worst = max(worst, require_close(case, result, right, what, 3))
            error = gradient_error(gradients, expected)
            if not error <= case.tolerance * GRADIENT_SLACK:
                raise Broken(f"gradients after a shared prefix are off by {error:.2e}")
            worst = max(worst, error)
    return worst


@contextmanager
def _in_every_row(prefix: PrefixRunner) -> Iterator[None]:
    """Inside, nothing runs separately."""
    prefix.enabled = False
    try:
        yield
    finally:
        prefix.enabled = True


def _rows_with_opening(case: Case, count: int, opening: int) -> list[Inputs]:
    """Rows of different lengths whose first `opening` tokens are the same."""
    generator = torch.Generator().manual_seed(case.seed)
    lowest = min(8, case.chart.vocabulary // 2)
    start = torch.randint(lowest, case.chart.vocabulary, (1, opening), generator=generator)
    start = start.to(case.model.device)
    singles: list[Inputs] = []
    for row in case.inputs(count):  # virtual tokens among them
        ids = torch.cat((start, row["input_ids"]), 1)
        singles.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return singles


def _gradients(
    case: Case, handles: list[Inlay], output: Tensor, singles: list[Inputs]
) -> list[Tensor | None]:
    """The gradients of a sum over all rows, zeros where there are none."""
    if not case.changes_outputs or not output.requires_grad:
        return []
    weighted_sum_of_rows(case, output, singles).backward()
    parameters = [p for handle in handles for p in handle.parameters()]
    gradients = zip(parameters, take_gradients(handles), strict=True)
    return [torch.zeros_like(p) if gradient is None else gradient for p, gradient in gradients]
