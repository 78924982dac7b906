"""Distillation: labels as another's scores, which tell more than which label wins.

    loss = T² · Σ_rows KL(softmax(s / T) ‖ softmax(z / T))

s are the teacher's scores and z the student's logits. T² keeps gradients as large as those of
labels (Hinton et al., 2015); PET has T = 2 (Schick & Schütze, EACL 2021).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def distilled(logits: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """The loss of logits `[B, C]` against scores `[B, C]`, summed over the rows (a scalar)."""
    told = F.log_softmax(scores / temperature, -1)
    said = F.log_softmax(logits / temperature, -1)
    return temperature**2 * F.kl_div(said, told, reduction="sum", log_target=True)
