"""Soft labels: what several models that ask in their own ways think of every text.

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
from inlay.training.loop.batches import by_length
from inlay.training.loop.progress import Shown


@torch.no_grad()
def scores(
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
    """What each of M models says to each of N examples: `[M, N, C]`, fp32, on the CPU.

    tasks: one a model, bound to the base, alike but for their templates. names: of the inlay that
    goes with each, whose rows share batches; None for the base as it stands. The rest as in
    `predict`.
    """
    read = [row for task in tasks for row in task.encode_all(data)]
    made = torch.empty(len(read), len(tasks[0].labels))
    with (
        Shown(console or Console(quiet=True)) as shown,
        evaluating(model),
        shown.counting(f"scoring {what}", len(read)) as advance,
    ):
        for numbers in by_length([len(row) for row in read], rows=batch_size, tokens=tokens):
            batch = tasks[0].collate([read[number] for number in numbers]).to(model.device)
            asked = None if names is None else [names[n // len(data)] for n in numbers]
            with nullcontext() if asked is None else inlay_rows(model, asked):
                made[numbers] = tasks[0].outputs(model, batch).scores.cpu()
            advance(len(numbers))
    return made.unflatten(0, (len(tasks), len(data)))


def ensemble(scores: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean `[N, C]` of scores `[M, N, C]`; weights `[M]`, which may all be 0."""
    weights = weights if weights.any() else torch.ones_like(weights)
    return torch.einsum("m,mnc->nc", weights, scores) / weights.sum()


def softly(data: Sequence[Example], scores: Tensor) -> list[Example]:
    """The examples with scores `[N, C]` to learn from."""
    return [
        Example({**example.fields, "scores": own}, example.where)
        for example, own in zip(data, scores.tolist(), strict=True)
    ]
