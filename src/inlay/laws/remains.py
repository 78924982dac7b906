"""The law of what remains: nothing of a pass outlives it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

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
from inlay.runtime.stack_inputs import first_output, replace_first_output

OPENING = 12
"""Tokens that all rows of the batch begin with, so that a shared prefix runs."""


class Token:
    """Lives as long as the graph that it was put into."""


class _Mark(torch.autograd.Function):
    """Passes states on, and puts a token into their graph."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, token: Token) -> Tensor:
        ctx.token = token
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def nothing_outlives_the_pass(case: Case) -> float:
    """The graph of a pass is gone when its output is, and after a training step; a copy works.

    What keeps a graph keeps all tensors of its pass in memory, and cannot be copied.
    """
    if case.model.num_parameters() > TOO_LARGE:
        raise NotApplicable("the base is too large to copy")
    batch = _batch(case)
    with case.isolated(), case.learner() as learner, training_without_dropout(case.model):
        with _marked(case) as graphs:
            learns = model_output(case.model, batch).requires_grad
            _require_none(graphs, "a forward pass")
            if not learns:
                return 0.0
            recomputes = case.model.supports_gradient_checkpointing
            with checkpointed(case.model) if recomputes else nullcontext():
                weighted_sum(model_output(case.model, batch)).backward()
            _require_none(graphs, "a training step")
        take_gradients([learner])
        _copy(case)
    return 0.0


@contextmanager
def _marked(case: Case) -> Iterator[list[weakref.ref[Token]]]:
    """Inside, every block's output has a token in its graph; yields references to them."""
    tokens: list[weakref.ref[Token]] = []

    def mark(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        token = Token()
        tokens.append(weakref.ref(token))
        return replace_first_output(output, _Mark.apply(first_output(output), token))

    layers = [layer for stack in case.chart.stacks for layer in stack.layers]
    hooks = [layer.register_forward_hook(mark) for layer in layers]
    try:
        yield tokens
    finally:
        for hook in hooks:
            hook.remove()


def _require_none(graphs: list[weakref.ref[Token]], when: str) -> None:
    """Raise Broken where a graph is alive."""
    if any(reference() is not None for reference in graphs):
        raise Broken(f"after {when} something keeps its graph")
    graphs.clear()


def _copy(case: Case) -> None:
    """Raise Broken where the model cannot be copied."""
    container = container_of(case.model)
    try:
        if container is None:
            copy.deepcopy(case.model)
        else:  # the base, which laws do not change, need not be copied with it
            copy.deepcopy(container, {id(part): part for part in _of_the_base(case, container)})
    except RuntimeError as error:  # how torch refuses a tensor that has a graph
        raise Broken(f"the model cannot be copied any more: {error!s:.120}") from None


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
