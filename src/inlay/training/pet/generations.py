"""Generations: each model learns from what some of the others make of unlabelled text.

|T_g| = d^g |T_0|,   of every label alike        Schick & Schütze, EACL 2021, section 3.4
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor


def committee(model: int, models: int, share: float, draw: random.Random) -> list[int]:
    """The numbers of those that label for a model: a share of all others, and one at least."""
    others = [number for number in range(models) if number != model]
    return sorted(draw.sample(others, max(1, round(share * len(others)))))


def wanted(counts: Sequence[int], growth: int, generation: int, kept: bool) -> list[int]:
    """How many texts of each label a model is given, beside those labelled by hand.

    counts: how many of each label the first set has. generation: from 0 on. kept: whether the
    first set is labelled by hand, and so part of every set.
    """
    return [count * growth**generation - (count if kept else 0) for count in counts]


def picked(
    scores: Tensor, counts: Sequence[int], draw: torch.Generator | None
) -> list[tuple[int, int]]:
    """Texts for each label, none twice: (number of the text, number of its label).

    scores `[N, C]`, N at least the sum of the counts. draw: draws among the texts that a label
    wins, the likelier ones rather; None takes the most likely. Where a label wins too few, the
    likeliest of the others are taken.
    """
    sure = scores.softmax(-1)
    free = torch.ones(len(sure), dtype=torch.bool)
    found: list[list[int]] = [[] for _ in counts]
    if draw is not None:
        for label, count in enumerate(counts):
            won = (sure.argmax(-1) == label).nonzero().squeeze(1)
            count = min(count, len(won))
            if count:
                chosen = won[torch.multinomial(sure[won, label], count, generator=draw)]
                free[chosen] = False
                found[label] = chosen.tolist()
    for label, count in enumerate(counts):
        order = sure[:, label].masked_fill(~free, -1.0)
        chosen = order.topk(count - len(found[label])).indices
        free[chosen] = False
        found[label] += chosen.tolist()
    return [(place, label) for label, places in enumerate(found) for place in sorted(places)]
