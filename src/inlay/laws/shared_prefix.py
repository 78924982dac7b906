"""A law about what runs apart: once in front of all rows is as good as once in every row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from inlay.handle import Inlay, rows
from inlay.laws.case import Broken, Case, NotApplicable, aligned, answer, join, near, weigh
from inlay.runtime.container import stack_hooks
from inlay.runtime.shared_prefix import PrefixRunner

OPENING = 10
"""Tokens that all rows of the law's batch begin with."""

KINKS = 30
"""How much further gradients may be off: a relu near zero turns over with the last digit."""


def shared_prefix_runs_once(case: Case) -> float:
    """Prompts and shared openings that run once give the answers and gradients of the plain way."""
    if case.chart.kind != "decoder":
        raise NotApplicable("only what a causal model begins with can run once")
    names = ["law", "law-b", "law", "law", "law-b", "law"]
    worst = 0.0
    with case.quiet(), case.inlay() as a, case.inlay("law-b", seed=5) as b:
        prefix = stack_hooks(case.model)[0].prefix
        if prefix is None:
            raise NotApplicable("the prefix of this base cannot run separately")
        for opening in (0, OPENING):
            singles = _begun(case, len(names), opening)
            batch = join(singles)
            with rows(case.model, names):
                ours = answer(case.model, batch)
                grads = _gradients(case, [a, b], ours, singles)
                with _plainly(prefix):
                    plain = answer(case.model, batch)
                    wanted = _gradients(case, [a, b], plain, singles)
            for number, single in enumerate(singles):
                got, right = (
                    aligned(case, out.detach(), number, single, "right") for out in (ours, plain)
                )
                worst = max(worst, near(case, got, right, f"row {number} after a shared prefix", 3))
            size = max((float(g.abs().max()) for g in wanted), default=0.0)
            for x, y in zip(grads, wanted, strict=True):
                error = float((x - y).abs().max()) / max(size, 1e-6)
                if not error <= case.tolerance * KINKS:
                    raise Broken(f"gradients after a shared prefix are off by {error:.2e}")
                worst = max(worst, error)
    return worst


@contextmanager
def _plainly(prefix: PrefixRunner) -> Iterator[None]:
    prefix.enabled = False
    try:
        yield
    finally:
        prefix.enabled = True


def _begun(case: Case, count: int, opening: int) -> list[dict[str, Tensor]]:
    """Rows of different lengths that begin alike."""
    singles = case.inputs(count)  # virtual tokens among them
    generator = torch.Generator().manual_seed(case.seed)
    low = min(8, case.model.config.vocab_size // 2)
    start = torch.randint(low, case.model.config.vocab_size, (1, opening), generator=generator)
    start = start.to(case.model.device)
    made = []
    for single in singles:
        ids = torch.cat((start, single["input_ids"]), 1)
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return made


def _gradients(
    case: Case, handles: list[Inlay], out: Tensor, singles: list[dict[str, Tensor]]
) -> list[Tensor]:
    """The gradients of a loss over all rows, zeros where there are none."""
    if not case.learns or not out.requires_grad:
        return []
    parameters = [p for handle in handles for p in handle.parameters()]
    pairs = enumerate(singles)
    torch.stack(
        [weigh(aligned(case, out, number, single, "right")) for number, single in pairs]
    ).sum().backward()
    made = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    return made
