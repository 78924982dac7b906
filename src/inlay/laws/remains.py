"""The law of what remains: nothing of a pass outlives it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from inlay.laws.batches import Inputs, pad_batch
from inlay.laws.case import TOO_LARGE, Broken, Case, NotApplicable
from inlay.laws.compare import (
    model_output,
    take_gradients,
    training_without_dropout,
    weighted_sum,
)
from inlay.laws.learning import checkpointed
from inlay.runtime.container import Container, container_of

OPENING = 12
"""Tokens that all rows of the batch begin with, so that a shared prefix runs."""


def nothing_outlives_the_pass(case: Case) -> float:
    """A model can be copied after a forward pass and after a training step.

    What keeps a graph cannot be copied, and keeps all tensors of its pass in memory.
    """
    if case.model.num_parameters() > TOO_LARGE:
        raise NotApplicable("the base is too large to copy")
    batch = _batch(case)
    with case.isolated(), case.learner() as learner, training_without_dropout(case.model):
        output = model_output(case.model, batch)
        _copy(case, "a forward pass")
        if not output.requires_grad:
            return 0.0
        if case.model.supports_gradient_checkpointing:
            with checkpointed(case.model):
                output = model_output(case.model, batch)
                weighted_sum(output).backward()
        else:
            weighted_sum(output).backward()
        _copy(case, "a training step")
        take_gradients([learner])
    return 0.0


def _copy(case: Case, when: str) -> None:
    """Raise Broken where the model cannot be copied."""
    container = container_of(case.model)
    try:
        if container is None:
            copy.deepcopy(case.model)
        else:  # the base, which laws do not change, need not be copied with it
            copy.deepcopy(container, {id(part): part for part in _of_the_base(case, container)})
    except RuntimeError as error:  # how torch refuses a tensor that has a graph
        raise Broken(f"after {when} the model cannot be copied: {error!s:.120}") from None


def _of_the_base(case: Case, container: Container) -> Iterator[object]:
    """What is not the container's."""
    ours = set(container.modules())
    for part in case.model.modules():
        if part not in ours:
            yield part
    pieces = {id(parameter) for parameter in container.parameters()}
    yield from (p for p in case.model.parameters() if id(p) not in pieces)


def _batch(case: Case) -> Inputs:
    batch = pad_batch(case.inputs(3))
    if case.chart.kind != "decoder":
        return batch
    opening = torch.arange(1, OPENING + 1, device=batch["input_ids"].device).expand(3, -1)
    ids = torch.cat((opening, batch["input_ids"]), 1)
    mask = torch.cat((torch.ones_like(opening), batch["attention_mask"]), 1)
    return {"input_ids": ids, "attention_mask": mask}
