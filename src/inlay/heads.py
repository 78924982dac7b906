"""Trained heads: logits over classes from the last hidden state, each row by its own head."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inlay.attach import attached
from inlay.errors import RowsError, TaskError
from inlay.piece import Head


def head_of(model: PreTrainedModel, name: str) -> Head | None:
    """The head that an attached inlay holds, or None."""
    for _, _, piece in attached(model)[name].pieces():
        if isinstance(piece, Head):
            return piece
    return None


def classify(model: PreTrainedModel, hidden: Tensor, mask: Tensor) -> Tensor:
    """hidden `[B, T, D]`, mask `[B, T]` -> logits by the heads of the rows' inlays.

    Logits are `[B, C]`, and `[B, T, C]` of heads that classify each token. Rows are those of the
    forward pass that made `hidden`. Raises TaskError where no attached inlay has a head, RowsError
    where a row has none, or heads differ in their number of classes or in what they classify.
    """
    present = attached(model)
    heads = {name: head for name in present if (head := head_of(model, name)) is not None}
    if not heads:
        raise TaskError("no attached inlay has a trained head; add + Head(labels=[...]) to it")
    route = next(iter(present.values())).root.route
    groups = route.groups(len(hidden), heads)
    if groups is None or any(len(names) != 1 for names in groups.names):
        raise RowsError("every row needs exactly one inlay with a trained head; say which by rows")
    if groups.group is None:
        return heads[groups.names[0][0]](hidden, mask)
    number = groups.index(hidden.device)
    made = [
        heads[names[0]](hidden[number == i], mask[number == i])
        for i, names in enumerate(groups.names)
    ]
    if len({part.dim() for part in made}) > 1:
        raise RowsError("some heads of these rows classify each token, and others the whole text")
    if len({part.shape[-1] for part in made}) > 1:
        raise RowsError("the heads of these rows have different numbers of classes")
    order = torch.argsort(number, stable=True)
    return torch.cat(made)[torch.argsort(order)]
