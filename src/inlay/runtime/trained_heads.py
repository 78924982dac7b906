"""Trained heads: logits over classes from the last hidden state, each row by its own head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inlay.architectures.chart import Chart
from inlay.core.piece import HeadPiece
from inlay.errors import RowsError, TaskError
from inlay.runtime.container import container_of, stack_hooks
from inlay.runtime.side import SidePort


def head_inputs(model: PreTrainedModel, chart: Chart, **inputs: Any) -> tuple[Tensor, Tensor]:
    """Run the first stack, and return what a trained head reads: its last states and their mask.

    inputs: what the backbone takes. Returns states `[B, T, D]` and a mask `[B, T]`; in an
    encoder–decoder with a prompt both hold the prompt's positions too. Raises PortError where the
    encoder has a side network, which only the decoder reads.
    """
    states = chart.stacks[0].last_hidden_state(**inputs)
    mask = inputs.get("attention_mask")
    for hooks in stack_hooks(model)[:1]:
        hooks.state.port(SidePort).check_head()
        mask = hooks.widened(mask, states)
    if mask is None:
        mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
    return states, mask


def token_states(model: PreTrainedModel, chart: Chart, **inputs: Any) -> Tensor:
    """Run the first stack, and return its last states at the tokens of the text, `[B, T, D]`."""
    states = chart.stacks[0].last_hidden_state(**inputs)
    for hooks in stack_hooks(model)[:1]:
        hooks.state.port(SidePort).check_head()
        states = hooks.narrowed(inputs.get("attention_mask"), states)
    return states


def head_of(model: PreTrainedModel, name: str) -> HeadPiece | None:
    """The trained head of an attached inlay, or None."""
    container = container_of(model)
    placed = () if container is None else container.pieces(name).placed
    return next((p.piece for p in placed if isinstance(p.piece, HeadPiece)), None)


def classify(model: PreTrainedModel, hidden: Tensor, mask: Tensor) -> Tensor:
    """Classify rows, each by the trained head of the inlay that serves it.

    Args:
        model: the base.
        hidden: the last hidden states of a forward pass over these rows, `[B, T, D]`.
        mask: 1 where there is text, `[B, T]`.

    Returns logits `[B, C]`, or `[B, T, C]` by heads that classify each token.

    Raises TaskError where no attached inlay has a head; RowsError where a row has none, or heads
    differ in their number of classes or in what they classify.
    """
    container = container_of(model)
    names = () if container is None else container.sets
    heads = {name: head for name in names if (head := head_of(model, name)) is not None}
    if container is None or not heads:
        raise TaskError("no attached inlay has a trained head; add + Head(labels=[...]) to it")
    container.routing.bind()  # the states may have been computed long ago, for other rows
    groups = container.routing.groups(len(hidden), heads)
    if groups is None or any(len(names) != 1 for names in groups.names):
        raise RowsError("every row needs exactly one inlay with a trained head; say which by rows")
    chart = container.chart
    if groups.group is None:
        return _logits(chart, model, heads[groups.names[0][0]], hidden, mask)
    number = groups.index(hidden.device)
    parts = [
        _logits(chart, model, heads[names[0]], hidden[number == i], mask[number == i])
        for i, names in enumerate(groups.names)
    ]
    if len({part.dim() for part in parts}) > 1:
        raise RowsError(
            "some heads of these rows classify each token, and others the whole text; run them in "
            "batches of their own"
        )
    if len({part.shape[-1] for part in parts}) > 1:
        raise RowsError(
            "the heads of these rows have different numbers of classes; run them in batches of "
            "their own"
        )
    order = torch.argsort(number, stable=True)
    return torch.cat(parts)[torch.argsort(order)]


def _logits(
    chart: Chart, model: PreTrainedModel, head: HeadPiece, hidden: Tensor, mask: Tensor
) -> Tensor:
    """The logits of one head; a head that reads features reads those at each row's last token."""
    if head.reads == "states":
        return head(hidden, mask)
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask.bool(), places, -1).amax(1).clamp(min=0)
    last_states = hidden[torch.arange(len(hidden), device=hidden.device), last.to(hidden.device)]
    features = chart.output_embedding_inputs(model, last_states)[:, None]
    return head(features, mask.new_ones(len(hidden), 1))
