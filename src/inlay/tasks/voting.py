"""Majority votes of the members of an ensemble."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

Item = TypeVar("Item")


def majority(scores: Tensor, members: int) -> tuple[Tensor, Tensor]:
    """Each member's vote, and the winner of each group of `members` rows that follow each other.

    Of classes with equally many votes the one with the highest mean score wins.

    Args:
        scores: `[B, …, C]`.
        members: how many rows vote together; B is a multiple of it.

    Returns the votes `[B, …]` and the winners `[B / members, …]`, as numbers of classes.
    """
    votes = scores.argmax(-1)
    counts = one_hot(votes, scores.shape[-1]).unflatten(0, (-1, members)).sum(1)
    means = scores.unflatten(0, (-1, members)).mean(1)
    tied = counts == counts.amax(-1, keepdim=True)
    return votes, means.masked_fill(~tied, -torch.inf).argmax(-1)


def most_frequent(votes: list[Item], members: int) -> list[Any]:
    """The most frequent vote of each group of `members`; of several the one that comes first."""
    groups = [votes[start : start + members] for start in range(0, len(votes), members)]
    return [max(group, key=group.count) for group in groups]
