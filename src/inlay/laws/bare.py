"""The law of the bare base: what does not serve a row changes nothing in it."""

from __future__ import annotations

import torch
from torch import Tensor

from inlay.handle import rows
from inlay.laws.batches import Inputs, paddings, row_output
from inlay.laws.case import Case
from inlay.laws.compare import model_output, require_close


def unserved_rows_are_the_base(case: Case) -> float:
    """Rows of the bare base, and of another inlay, compute what they do where it is not attached.

    That holds for a disabled inlay, for rows called None, and for every row of a mixed batch, with
    and without padding and position ids; also where the base is not inert to padding.
    """
    model, singles = case.model, case.inputs(3)
    batches = _batches(case, singles)
    worst = 0.0

    def compare(output: Tensor, expected: Tensor, what: str, batch: int) -> None:
        nonlocal worst
        what = f"{what}, {batches[batch][0]}"
        worst = max(worst, require_close(case, output, expected, what))

    def compare_texts(outputs: list[Tensor], expected: list[Tensor], number: int) -> None:
        for batch, pair in enumerate(zip(outputs, expected, strict=True)):
            side = "left" if "left" in batches[batch][0] else "right"
            output, right = (
                row_output(case.chart, whole, number, singles[number], side) for whole in pair
            )
            compare(output, right, f"row {number} beside one that is served", batch)

    def outputs() -> list[Tensor]:
        return [model_output(model, inputs) for _, inputs in batches]

    with case.isolated(), torch.no_grad():
        base = outputs()
        with case.inlay("law-b", seed=5) as second:
            other = outputs()
            with case.inlay() as first:
                with rows(model, ["law", None, "law-b"]):
                    mixed = outputs()
                compare_texts(mixed, base, 1)
                compare_texts(mixed, other, 2)
                last = min(1, len(batches) - 1)  # padded on the left, without position ids
                _, inputs = batches[last]
                with rows(model, ["law-b"]):
                    compare(model_output(model, inputs), other[last], "another's rows", last)
                with rows(model, [None]):
                    compare(model_output(model, inputs), base[last], "rows None", last)
                first.enabled = second.enabled = False
                compare(model_output(model, inputs), base[last], "disabled", last)
    return worst


def _batches(case: Case, singles: list[Inputs]) -> list[tuple[str, Inputs]]:
    """Three rows, padded in every way; on the left with and without position ids."""
    return [(f"padded {side}", pad(singles)) for side, pad in paddings(case.chart)]
