"""Generations of iPET: each model is trained on texts that some of the others labelled.

|T_g| = d^g |T_0|,   of every label alike        Schick & Schütze, EACL 2021, section 3.4
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor


def labelling_models(model: int, models: int, share: float, generator: random.Random) -> list[int]:
    """The numbers of the models that label texts for a model: a share of the others, at least one.

    Args:
        model: the number of the model.
        models: how many there are.
        share: of the other models, above 0.
        generator: draws them.
    """
    others = [number for number in range(models) if number != model]
    return sorted(generator.sample(others, max(1, round(share * len(others)))))


def texts_per_label(
    counts: Sequence[int], growth: int, generation: int, first_set_labelled: bool
) -> list[int]:
    """How many unlabelled texts of each label a model is trained on.

    Args:
        counts: how many rows of each label the first set has.
        growth: how many times as large the set of each generation is.
        generation: from 0.
        first_set_labelled: whether the first set is labelled by hand, and so part of every set.
    """
    return [count * growth**generation - (count if first_set_labelled else 0) for count in counts]


def select_texts(
    scores: Tensor, counts: Sequence[int], generator: torch.Generator | None
) -> list[tuple[int, int]]:
    """Select texts for each label, none twice.

    Args:
        scores: `[N, C]`; N is at least the sum of the counts.
        counts: how many texts of each label.
        generator: draws, by their probability, among the texts of which a label is the most
            probable. None takes the most probable ones. Where there are too few, the most probable
            of the others are taken.

    Returns pairs of the number of a text and the number of its label.
    """
    probabilities = scores.softmax(-1)
    available = torch.ones(len(scores), dtype=torch.bool)
    selected: list[list[int]] = [[] for _ in counts]
    if generator is not None:
        for label, count in enumerate(counts):
            candidates = (probabilities.argmax(-1) == label).nonzero().squeeze(1)
            count = min(count, len(candidates))
            if count:
                weights = probabilities[candidates, label]
                drawn = candidates[torch.multinomial(weights, count, generator=generator)]
                available[drawn] = False
                selected[label] = drawn.tolist()
    for label, count in enumerate(counts):
        order = probabilities[:, label].masked_fill(~available, -1.0)
        best = order.topk(count - len(selected[label])).indices
        available[best] = False
        selected[label] += best.tolist()
    return [(text, label) for label, texts in enumerate(selected) for text in sorted(texts)]
