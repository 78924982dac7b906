"""Calibration: one temperature that makes a task's probabilities as high as it is right.

    p = softmax(scores / T),   T = argmin of the mean −log p(right class) over held-out rows

A T above 1 makes probabilities less extreme; predictions stay as they are. How well they fit says
the expected calibration error: rows are put into bins by the probability of what is predicted, and
the error is the mean distance, over all rows, of a bin's mean probability from the fraction of its
rows that are right (Guo et al., ICML 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 15
LOWEST, HIGHEST = 0.02, 50.0
"""What a temperature can be."""

STEPS = 60
"""Of the search; each makes the interval of log T 0.62 times as long."""


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what it does to held-out rows.

    temperature: what scores are divided by.
    error_before, error_after: the expected calibration error without it and with it, from 0 to 1.
    rows: how many decisions it was fitted on: rows, words, or labels of rows.
    """

    temperature: float
    error_before: float
    error_after: float
    rows: int


def fit_temperature(scores: Tensor, classes: Tensor) -> Calibration | None:
    """The temperature that fits scores `[N, C]` and the right classes `[N]`.

    None where nothing can be fitted: no rows, or scores that are not finite where they count.
    """
    scores, classes = scores.detach().double().cpu(), classes.cpu()
    right = scores.gather(1, classes[:, None])
    if not len(scores) or not bool(right.isfinite().all()):
        return None
    low, high = torch.tensor(LOWEST).log().item(), torch.tensor(HIGHEST).log().item()
    ratio = (5**0.5 - 1) / 2  # golden section: the loss has one minimum in log T
    for _ in range(STEPS):
        left, right_ = high - ratio * (high - low), low + ratio * (high - low)
        if _loss(scores, classes, left) <= _loss(scores, classes, right_):
            high = right_
        else:
            low = left
    temperature = float(torch.tensor((low + high) / 2, dtype=torch.float64).exp())
    return Calibration(
        temperature,
        calibration_error(torch.softmax(scores, 1), classes),
        calibration_error(torch.softmax(scores / temperature, 1), classes),
        len(scores),
    )


def calibration_error(shares: Tensor, classes: Tensor) -> float:
    """The expected calibration error of probabilities `[N, C]` with right classes `[N]`."""
    best, predicted = shares.max(1)
    right = (predicted == classes).double()
    bins = (best * BINS).ceil().clamp(1, BINS).long() - 1
    error = 0.0
    for number in bins.unique().tolist():
        inside = bins == number
        error += inside.sum().item() * abs((best[inside].mean() - right[inside].mean()).item())
    return error / len(shares)


def _loss(scores: Tensor, classes: Tensor, log_temperature: float) -> float:
    temperature = torch.tensor(log_temperature, dtype=torch.float64).exp()
    return F.cross_entropy(scores / temperature, classes).item()
