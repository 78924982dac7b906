"""Auxiliary: a language-model loss on a row's own text, beside the task's.

    loss = (1 - a) · task + a · Σ_rows n_row · mean over the row's tokens of -log p(token)

n_row is how much the row counts in the task's loss: 1 where it is classified, the length of its
target where that is generated. So a row's two losses are both means, weighed alike, and the sum
over batches is that over one large batch. The text is the row's own, read once for both, as in Su
Jianlin's variants of P-tuning (github.com/bojone/P-tuning); `training.beside` asks it of other
texts, as PET does.

A decoder predicts every token of what it reads from those before. An encoder has 15 % of its
tokens hidden, but for special ones: 80 % of these by the mask, 10 % by any token, and 10 % stand
as they are (Devlin et al., NAACL 2019, section 3.1). Padding and virtual tokens are never asked
for, nor hidden. Only where gradients are asked for, so never in evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from inlay.architectures.chart import Chart
from inlay.errors import TaskError
from inlay.tasks.base import Batch, Bound
from inlay.tasks.loss import token_loss

Share = Annotated[float, Field(ge=0, lt=1)]
"""a, the share of the auxiliary loss; 0 for none."""

HIDDEN = 0.15
MASKED, DRAWN = 0.8, 0.1


@dataclass(frozen=True)
class Asked:
    """What is asked of a batch's own text. `[N]` each.

    positions: where in the flat `[B·T]` it is read off. tokens: which it is. weights: of each.
    """

    positions: Tensor
    tokens: Tensor
    weights: Tensor


def wanted(share: float) -> bool:
    """Whether a text is to be asked for: only where something learns."""
    return share > 0 and torch.is_grad_enabled()


def check(share: float, bound: Bound) -> None:
    """Raise TaskError for a model whose text has no loss of its own."""
    if share and bound.chart.kind == "encoder-decoder":
        raise TaskError(
            "auxiliary needs a decoder or an encoder, which read and predict one and the same "
            "text; leave it out for an encoder–decoder"
        )


def ask(bound: Bound, batch: Batch) -> tuple[Batch, Asked]:
    """The batch as it is to be read, and what is asked of its text.

    batch: with `positions` in the flat `[B·T]`, one for each thing that counts in the task.
    """
    ids = batch["input_ids"]
    free = (batch["attention_mask"] == 1) & (ids < bound.first)
    counts = torch.bincount(batch["positions"] // ids.shape[1], minlength=len(ids))
    if bound.chart.kind == "decoder":
        asked = free.clone()
        asked[:, 0] = False
        return batch, _asked(ids, asked, counts, -1)
    special = torch.tensor(bound.tokenizer.all_special_ids, device=ids.device)
    hidden = free & ~torch.isin(ids, special) & (torch.rand(ids.shape, device=ids.device) < HIDDEN)
    how = torch.rand(ids.shape, device=ids.device)
    drawn = torch.randint(len(bound.tokenizer), ids.shape, device=ids.device)
    read = torch.where(hidden & (how < MASKED + DRAWN), drawn, ids)
    read = read.masked_fill(hidden & (how < MASKED), bound.tokenizer.mask_token_id)
    return {**batch, "input_ids": read}, _asked(ids, hidden, counts, 0)


def own(asked: Asked, chart: Chart, model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The loss of what is asked, summed as it is weighed. hidden: the last states, `[B·T, D]`."""
    states = hidden.index_select(0, asked.positions)
    return token_loss(chart, model, states, asked.tokens, weights=asked.weights)


def mixed(share: float, task: Tensor, text: Tensor) -> Tensor:
    """The task's loss and the text's."""
    return (1 - share) * task + share * text


def _asked(ids: Tensor, where: Tensor, counts: Tensor, shift: int) -> Asked:
    """The tokens that stand `where`, each read off `shift` positions beside it."""
    weights = counts / where.sum(1).clamp(min=1)
    positions = where.flatten().nonzero().squeeze(1)
    tokens = ids.flatten()[positions]
    return Asked(positions + shift, tokens, weights[positions // ids.shape[1]])
