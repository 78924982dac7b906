"""Using pieces: generation with a prefix, and rows of one batch that are served differently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import inlay
from bench.base import ROWS, batch, model
from bench.steps import OURS
from bench.timing import Run
from inlay import Prefix
from inlay.architectures.resolve import resolve

READ, WRITTEN = 32, 64


def generation() -> dict[str, Run]:
    """Writing `WRITTEN` tokens behind `READ`, by the bare base and with a prefix of 20."""
    bare, base = model().eval(), model().eval()
    inlay.attach(base, Prefix(length=20, mlp=None))
    return {"bare": _writes(bare), "prefix": _writes(base)}


def mixed() -> dict[str, Run]:
    """Reading the batch and predicting the token behind it. Eight inlays are attached, two of each
    method; either one of them serves all rows (`lora`, `prompt`, …), or each row has its own."""
    base, rows = model().eval(), batch()
    chart = resolve(base)
    names = [(f"{method}-{number}", spec) for number in (0, 1) for method, spec in OURS.items()]
    assert len(names) == ROWS
    for name, spec in names:
        inlay.attach(base, spec, name=name)
    everyone = [name for name, _ in names]

    def reading(served: list[str]) -> Run:
        @torch.no_grad()
        def run() -> None:
            with inlay.rows(base, served):
                states = chart.last_hidden_state(base, input_ids=rows.ids, attention_mask=rows.mask)
                chart.logits(base, states[:, -1])

        return run

    runs = {method: reading([f"{method}-0"] * ROWS) for method in OURS}
    return {**runs, "mixed": reading(everyone)}


def _writes(base: Any) -> Callable[[], object]:
    rows = batch()
    return lambda: base.generate(
        input_ids=rows.ids[:, :READ],
        attention_mask=rows.mask[:, :READ],
        do_sample=False,
        min_new_tokens=WRITTEN,
        max_new_tokens=WRITTEN,
    )
