"""The auxiliary language-model loss: on the text that a row reads, next to the task's own loss.

    loss = (1 − a) · task + a · Σ_rows n_row · mean over the row's tokens of −log p(token)

a is `auxiliary_weight`. n_row is how much the row counts in the task's loss: 1 where it is
classified, the length of its target where that is generated. So the two losses of a row are means
of equal standing, and the sum over batches is that over one large batch. One run of the model
serves both, as in Su Jianlin's variants of P-tuning (github.com/bojone/P-tuning);
`training.pet.auxiliary_text` takes other texts, as PET does.

A decoder predicts every token of its text from those before. In an encoder 15 % of the tokens are
selected, but no special ones: 80 % of them are replaced by the mask, 10 % by a random token, and
10 % stay (Devlin et al., NAACL 2019, section 3.1). Padding and virtual tokens are neither predicted
nor replaced. The loss is computed only while gradients are, so never in evaluation.
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
from inlay.tasks.base import Bound
from inlay.tasks.outputs import TextStates, TokenStates

AuxiliaryWeight = Annotated[float, Field(ge=0, lt=1)]
"""a, the weight of the auxiliary loss; 0 for none."""

SELECTED = 0.15
"""The fraction of an encoder's tokens that is predicted."""

MASKED, RANDOM = 0.8, 0.1
"""The fractions of these that are replaced by the mask, and by a random token."""


@dataclass(frozen=True)
class LanguageModelTargets:
    """The tokens of a batch's own text that are predicted, `[N]` each.

    positions: where each is predicted, in the flat `[B·T]`.
    tokens: the token to predict.
    weights: of each in the sum.
    """

    positions: Tensor
    tokens: Tensor
    weights: Tensor

    def states(self, chart: Chart, model: PreTrainedModel, hidden: Tensor) -> TextStates:
        """The states at these positions of the final hidden states `[B·T, D]`."""
        states = TokenStates(chart, model, hidden.index_select(0, self.positions))
        return TextStates(states, self.tokens, self.weights)


def check_weight(weight: float, bound: Bound) -> None:
    """Raise TaskError for a weight where the model has no such loss."""
    if weight and bound.chart.kind == "encoder-decoder":
        raise TaskError(
            "an auxiliary loss needs a decoder or an encoder, which predict the text that they "
            "read; leave it out for an encoder–decoder"
        )


def is_used(weight: float) -> bool:
    """Whether the loss is to be computed: only while gradients are."""
    return weight > 0 and torch.is_grad_enabled()


def language_model_targets(
    bound: Bound, inputs: dict[str, Tensor], positions: Tensor
) -> tuple[dict[str, Tensor], LanguageModelTargets]:
    """Choose what of a batch's text is predicted.

    Args:
        bound: what the task is bound to.
        inputs: of the batch.
        positions: of everything that counts in the task's loss, in the flat `[B·T]`.

    Returns the inputs with an encoder's tokens replaced, and what is predicted.
    """
    ids = inputs["input_ids"]
    plain = (inputs["attention_mask"] == 1) & (ids < bound.first_virtual_id)
    counts = torch.bincount(positions // ids.shape[1], minlength=len(ids))
    if bound.chart.kind == "decoder":
        predicted = plain.clone()
        predicted[:, 0] = False
        return inputs, _targets(ids, predicted, counts, shift=-1)
    special = torch.tensor(bound.tokenizer.all_special_ids, device=ids.device)
    draws = torch.rand(ids.shape, device=ids.device)
    selected = plain & ~torch.isin(ids, special) & (draws < SELECTED)
    draws = torch.rand(ids.shape, device=ids.device)
    random_ids = torch.randint(len(bound.tokenizer), ids.shape, device=ids.device)
    replaced = torch.where(selected & (draws < MASKED + RANDOM), random_ids, ids)
    replaced = replaced.masked_fill(selected & (draws < MASKED), bound.tokenizer.mask_token_id)
    return {**inputs, "input_ids": replaced}, _targets(ids, selected, counts, shift=0)


def mixed(weight: float, task_loss: Tensor, text: TextStates) -> Tensor:
    """The weighted sum of the task's loss and the text's."""
    return (1 - weight) * task_loss + weight * text.loss()


def _targets(ids: Tensor, predicted: Tensor, counts: Tensor, shift: int) -> LanguageModelTargets:
    """The tokens `[B, T]` where `predicted`, each read off `shift` positions from its own."""
    weights = counts / predicted.sum(1).clamp(min=1)
    positions = predicted.flatten().nonzero().squeeze(1)
    tokens = ids.flatten()[positions]
    return LanguageModelTargets(positions + shift, tokens, weights[positions // ids.shape[1]])
