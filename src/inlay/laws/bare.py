"""The law of the bare base: what does not serve a row changes nothing in it."""

from __future__ import annotations

import torch

from inlay.handle import rows
from inlay.laws.batches import Inputs, pad_batch, paddings
from inlay.laws.case import Case
from inlay.laws.compare import model_output, require_close


def unserved_rows_are_the_base(case: Case) -> float:
    """Rows of the bare base, and of another inlay, compute what they do where it is not attached.

    That holds for a disabled inlay, for rows called None, and for every row of a mixed batch, with
    and without padding and position ids; also where the base is not inert to padding.
    """
    worst = 0.0
    for what, batch in _batches(case):
        with case.isolated(), torch.no_grad():
            base = model_output(case.model, batch)
            with case.inlay("law-b", seed=5):
                other = model_output(case.model, batch)
            with case.inlay() as handle:
                with rows(case.model, [None]):
                    output = model_output(case.model, batch)
                worst = max(worst, require_close(case, output, base, f"rows None, {what}"))
                with case.inlay("law-b", seed=5):
                    output = model_output(case.model, batch)
                    worst = max(worst, require_close(case, output, other, f"another's, {what}"))
                    with rows(case.model, ["law", None, "law-b"]):
                        output = model_output(case.model, batch)
                    mixed = f"beside a row that is served, {what}"
                    worst = max(worst, require_close(case, output[1], base[1], mixed, 3))
                    worst = max(worst, require_close(case, output[2], other[2], mixed, 3))
                handle.enabled = False
                output = model_output(case.model, batch)
                worst = max(worst, require_close(case, output, base, f"disabled, {what}"))
    return worst


def _batches(case: Case) -> list[tuple[str, Inputs]]:
    """Three rows, padded in every way and given with and without position ids."""
    singles = case.inputs(3)
    batches = [(f"padded {side}", pad(singles)) for side, pad in paddings(case.chart)]
    if case.chart.kind == "decoder":
        plain = {"input_ids": pad_batch(singles)["input_ids"]}
        batches.append(("without a mask", plain))
    return batches
