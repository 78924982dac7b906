"""Soft labels: the ensemble's scores of unlabelled texts.

    s(y | x) = Σ_m w_m s_m(y | x) / Σ_m w_m        Schick & Schütze, EACL 2021, section 3.3

The scores s_m are logits of the labels only.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from inlay.core.modes import evaluating
from inlay.data.dataset import Example
from inlay.handle import rows as inlay_rows
from inlay.tasks import Classify
from inlay.training.loop.batches import batches_by_length
from inlay.training.loop.moving import on_device
from inlay.training.loop.progress import ProgressDisplay


@torch.no_grad()
def score_examples(
    model: PreTrainedModel,
    tasks: Sequence[Classify],
    names: Sequence[str] | None,
    data: Sequence[Example],
    *,
    batch_size: int | None = 16,
    tokens: int | None = None,
    console: Console | None = None,
    what: str = "rows",
) -> Tensor:
    """The scores that each of M models gives each of N examples: `[M, N, C]`, fp32, on the CPU.

    Args:
        model: the base.
        tasks: one for each model, bound to the base, equal except for their templates.
        names: the inlay of each model, whose rows share batches; None for the base alone.
        data: the examples.
        batch_size, tokens, console, what: as in `predict`.
    """
    rows = [row for task in tasks for row in task.encode_all(data)]
    scores = torch.empty(len(rows), len(tasks[0].labels))
    costs = [len(row) for row in rows]
    with (
        ProgressDisplay(console or Console(quiet=True)) as display,
        evaluating(model),
        display.counting(f"scoring {what}", len(rows)) as advance,
    ):
        for numbers in batches_by_length(costs, rows=batch_size, tokens=tokens):
            collated = tasks[0].collate([rows[number] for number in numbers])
            serving = None if names is None else [names[n // len(data)] for n in numbers]
            served = nullcontext() if serving is None else inlay_rows(model, serving)
            with served, on_device(model, collated) as batch:
                scores[numbers] = tasks[0].outputs(model, batch).scores.cpu()
            advance(len(numbers))
    return scores.unflatten(0, (len(tasks), len(data)))


def weighted_mean(scores: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean `[N, C]` of scores `[M, N, C]`; weights `[M]`, uniform if all are 0."""
    weights = weights if weights.any() else torch.ones_like(weights)
    return torch.einsum("m,mnc->nc", weights, scores) / weights.sum()


def with_scores(data: Sequence[Example], scores: Tensor) -> list[Example]:
    """The examples with scores `[N, C]` as their soft labels."""
    return [
        Example({**example.fields, "scores": row}, example.where)
        for example, row in zip(data, scores.tolist(), strict=True)
    ]
