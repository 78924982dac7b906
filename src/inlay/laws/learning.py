"""Laws about gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inlay.core.piece import HeadPiece
from inlay.handle import Inlay, attached, rows
from inlay.laws.case import (
    Broken,
    Case,
    NotApplicable,
    answer,
    join,
    move,
    weigh,
)


def only_pieces_learn(case: Case) -> float:
    """Every number of the pieces gets a gradient, and nothing of the base does."""
    inputs = join(case.inputs(3))
    if not case.learns:
        raise NotApplicable("a head learns through the task's loss")
    with case.quiet(), case.inlay() as handle:
        weigh(answer(case.model, inputs)).backward()
        for _ in range(2):  # a rectifier may be shut for every token by chance, hardly thrice
            move(handle)
            weigh(answer(case.model, inputs)).backward()
        heads = [p.piece for p in handle.placed if isinstance(p.piece, HeadPiece)]
        apart = {id(p) for head in heads for p in head.parameters()}  # these learn by a task
        pieces = {id(p) for p in handle.parameters()} - apart
        others = {id(p) for one in attached(case.model).values() for p in one.parameters()}
        for name, parameter in case.model.named_parameters():
            if id(parameter) in pieces:
                if not parameter.requires_grad or parameter.grad is None:
                    raise Broken(f"{name} gets no gradient")
                if not parameter.grad.any():
                    raise Broken(f"{name} gets a gradient that is zero everywhere")
            elif id(parameter) not in others | apart and (
                parameter.requires_grad or parameter.grad is not None
            ):
                raise Broken(f"{name} of the base learns")
    return 0.0


def checkpointing(case: Case) -> float:
    """Gradient checkpointing gives the same gradients, for the rows of each pass."""
    model = case.model
    if not model.supports_gradient_checkpointing:
        raise NotApplicable("this base has no gradient checkpointing")
    if not case.learns:
        raise NotApplicable("a head learns outside the blocks")
    singles = case.inputs(2)
    batch = {**join(singles)}
    if case.chart.stacks[-1].takes("use_cache"):
        batch["use_cache"] = False  # type: ignore[assignment]

    def gradients(handles: list[Inlay]) -> list[Tensor]:
        # two passes with different rows before one backward: each must be recomputed as it was
        with rows(model, ["law", "law-b"]):
            first = weigh(answer(model, batch))
        with rows(model, ["law-b", None]):
            second = weigh(answer(model, batch))
        with rows(model, [None]):
            (first + 2 * second).backward()
        made = [p.grad.clone() for h in handles for p in h.parameters() if p.grad is not None]
        for handle in handles:
            for parameter in handle.parameters():
                parameter.grad = None
        return made

    with case.quiet(), case.inlay() as a, case.inlay("law-b", seed=5) as b, no_dropout(model):
        model.train()
        plain = gradients([a, b])
        with checkpointed(model):
            again = gradients([a, b])
    if len(plain) != len(again):
        raise Broken("checkpointing loses gradients")
    size = max(float(g.abs().max()) for g in plain)
    worst = max(float((x - y).abs().max()) for x, y in zip(plain, again, strict=True)) / size
    if not worst <= case.tolerance:
        raise Broken(f"gradients with checkpointing are off by {worst:.2e}")
    return worst


@contextmanager
def no_dropout(model: PreTrainedModel) -> Iterator[None]:
    """Training mode without chance."""
    kept: list[tuple[Any, str, float]] = []
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            kept.append((part, "p", part.p))
        for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            value = vars(part).get(name)
            if isinstance(value, float):
                kept.append((part, name, value))
    try:
        for part, name, _ in kept:
            setattr(part, name, 0.0)
        yield
    finally:
        for part, name, value in kept:
            setattr(part, name, value)


SWITCHES = ("gradient_checkpointing", "_gradient_checkpointing_func")
HOOKS = ("_require_grads_hooks", "_require_grads_hook")


@contextmanager
def checkpointed(model: PreTrainedModel) -> Iterator[None]:
    """Gradient checkpointing on, and afterwards every switch and hook of it as it was."""
    switches = {
        part: {name: vars(part)[name] for name in SWITCHES if name in vars(part)}
        for part in model.modules()
    }
    hooks = {name: vars(model)[name] for name in HOOKS if name in vars(model)}
    model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        for hook in vars(model).get("_require_grads_hooks", ()):
            if hook not in hooks.get("_require_grads_hooks", ()):
                hook.remove()
        for part, kept in switches.items():
            for name in SWITCHES:
                vars(part).pop(name, None)
            vars(part).update(kept)
        for name in HOOKS:
            vars(model).pop(name, None)
        vars(model).update(hooks)
