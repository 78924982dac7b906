"""Batches of rows: padding them, and finding each row in what the model computed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from inlay.architectures.chart import Chart
from inlay.runtime.container import container_of

Inputs = dict[str, Tensor]
"""What a model is called with, by name."""

Pad = Callable[[list[Inputs]], Inputs]
"""Makes a padded batch of rows."""


def pad_batch(rows: list[Inputs], side: str = "right") -> Inputs:
    """Rows, each a batch of one, as one batch, padded with 0 on one side."""
    batch: Inputs = {}
    for key in rows[0]:
        tensors = [row[key] for row in rows]
        if key in ("input_ids", "attention_mask"):
            longest = max(tensor.shape[1] for tensor in tensors)
            missing = [longest - tensor.shape[1] for tensor in tensors]
            widths = [(0, n) if side == "right" else (n, 0) for n in missing]
            tensors = [F.pad(t, width) for t, width in zip(tensors, widths, strict=True)]
        batch[key] = torch.cat(tensors)
    return batch


def with_position_ids(chart: Chart, batch: Inputs) -> Inputs:
    """A padded batch with position ids counted from its mask, for bases with a position table."""
    start = chart.stacks[0].position_start
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0) + start
    return {**batch, "position_ids": positions}


def paddings(chart: Chart) -> list[tuple[str, Pad]]:
    """Every way to pad a batch for this base: the side, and a function that pads."""
    if not chart.reads_text:
        return [("right", pad_batch)]
    ways: list[tuple[str, Pad]] = [
        ("right", pad_batch),
        ("left", lambda rows: pad_batch(rows, "left")),
    ]
    if chart.kind == "decoder" and chart.stacks[0].takes("position_ids"):
        ways.append(("left", lambda rows: with_position_ids(chart, pad_batch(rows, "left"))))
    return ways


def row_output(chart: Chart, output: Tensor, number: int, row: Inputs, side: str) -> Tensor:
    """One row of a batch's output `[B, T, …]`, without its padding: `[1, T', …]`."""
    selected = output[number : number + 1]
    if not chart.reads_text or chart.decoder is not None or selected.dim() < 3:
        return selected
    length = row["input_ids"].shape[1]
    return selected[:, :length] if side == "right" else selected[:, -length:]


def first_virtual_id(model: PreTrainedModel) -> int:
    """The id of the first virtual token."""
    return len(model.get_input_embeddings().weight)  # type: ignore[arg-type]


def without_unserved_virtual_tokens(model: PreTrainedModel, inputs: Inputs) -> Inputs:
    """The inputs with ordinary tokens instead of virtual ones, in rows whose inlays have none."""
    key = "input_ids" if "input_ids" in inputs else "decoder_input_ids"
    ids = inputs.get(key)
    if ids is None:
        return inputs
    first = first_virtual_id(model)
    if not bool((ids >= first).any()):
        return inputs
    served = torch.zeros(len(ids), 1, dtype=torch.bool, device=ids.device)
    container = container_of(model)
    if container is not None:
        container.routing.bind()
        pieces = {name for stack in container.stacks for name in stack.tokens.pieces}
        groups = container.routing.groups(len(ids), pieces)
        if groups is not None:
            by_group = torch.tensor([bool(names) for names in groups.names], device=ids.device)
            index = 0 if groups.group is None else groups.index(ids.device)
            served[:, 0] = by_group[index]
    return {**inputs, key: torch.where((ids < first) | served, ids, ids - first + 1)}
