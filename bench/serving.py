"""Serving: generation with a prefix, and a batch whose rows use different inlays."""

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
    """Generating `WRITTEN` tokens after `READ`, by the base alone and with a prefix of 20."""
    bare, base = model().eval(), model().eval()
    inlay.attach(base, Prefix(length=20, mlp=None))
    return {"bare": _generating(bare), "prefix": _generating(base)}


def mixed() -> dict[str, Run]:
    """Predicting the token after the batch, with eight inlays attached, two of each method.

    Either one of them serves all rows (`lora`, `prompt`, …), or each row has its own (`mixed`).
    """
    base, tokens = model().eval(), batch()
    chart = resolve(base)
    names = [(f"{method}-{number}", spec) for number in (0, 1) for method, spec in OURS.items()]
    assert len(names) == ROWS
    for name, spec in names:
        inlay.attach(base, spec, name=name)
    all_names = [name for name, _ in names]

    def reading(row_names: list[str]) -> Run:
        @torch.no_grad()
        def run() -> None:
            with inlay.rows(base, row_names):
                states = chart.last_hidden_state(
                    base, input_ids=tokens.ids, attention_mask=tokens.mask
                )
                chart.logits(base, states[:, -1])

        return run

    runs = {method: reading([f"{method}-0"] * ROWS) for method in OURS}
    return {**runs, "mixed": reading(all_names)}


def _generating(base: Any) -> Callable[[], object]:
    tokens = batch()
    return lambda: base.generate(
        input_ids=tokens.ids[:, :READ],
        attention_mask=tokens.mask[:, :READ],
        do_sample=False,
        min_new_tokens=WRITTEN,
        max_new_tokens=WRITTEN,
    )
