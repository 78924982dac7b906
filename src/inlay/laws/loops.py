"""The law of loops: a penalty or schedule that a training loop leaves out is noticed.

And what a schedule keeps from step to step is in the checkpoint: resumed training goes on bit for
bit. That a penalty has the right value is each method's own test.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inlay.errors import TrainingError
from inlay.handle import Inlay, rows
from inlay.laws.batches import Inputs, pad_batch
from inlay.laws.case import Broken, Case, NotApplicable
from inlay.laws.compare import (
    model_output,
    take_gradients,
    training_without_dropout,
    weighted_sum,
)

STEPS = 5
"""Within so many steps a loop that leaves something out must be stopped."""

LEARNING_RATE = 0.01


def loops_cannot_skip_steps(case: Case) -> float:
    """Leaving out penalty or after_step raises TrainingError; resuming goes on bit for bit."""
    has_penalty = any(method.has_penalty for method in case.spec.methods)
    has_schedule = any(method.has_schedule for method in case.spec.methods)
    if not (has_penalty or has_schedule):
        raise NotApplicable("the method has neither a penalty nor a schedule")
    if not case.changes_outputs:
        raise NotApplicable("a head learns through the task's loss")
    batch = pad_batch(case.inputs(2))
    with case.isolated():
        if has_penalty:
            _require_notice(case, batch, "penalty", penalty=False)
        if has_schedule:
            _require_notice(case, batch, "after_step", after_step=False)
        _require_resumption(case, batch)
    return 0.0


def _require_notice(
    case: Case, batch: Inputs, skipped: str, penalty: bool = True, after_step: bool = True
) -> None:
    """Raise Broken where a loop that leaves something out is not stopped."""
    with case.inlay() as handle, training_without_dropout(case.model):
        try:
            _train(case, handle, batch, range(STEPS), penalty, after_step)
        except TrainingError:
            return
        finally:
            take_gradients([handle])
    raise Broken(f"a loop that leaves out {skipped} is not stopped in {STEPS} steps")


def _require_resumption(case: Case, batch: Inputs) -> None:
    """Raise Broken where training goes on otherwise from a checkpoint than without one."""
    with case.inlay() as handle, training_without_dropout(case.model):
        _train(case, handle, batch, range(2))
        checkpoint = _copy(handle)
        _train(case, handle, batch, range(2, STEPS))
        expected = _copy(handle)
    with case.inlay("law-resumed", seed=5) as resumed, training_without_dropout(case.model):
        resumed.load_training_state(checkpoint)
        _train(case, resumed, batch, range(2, STEPS))
        state = _copy(resumed)
    for name, tensor in state.items():
        if not torch.equal(tensor, expected[name]):
            raise Broken(f"{name} differs after resuming from what it is without a break")


def _train(
    case: Case,
    handle: Inlay,
    batch: Inputs,
    steps: range,
    penalty: bool = True,
    after_step: bool = True,
) -> None:
    """Steps of gradient descent on one batch, as a loop of one's own does them.

    Raises Broken where the penalty is not a finite scalar, TrainingError as the library does.
    """
    optimizer = torch.optim.SGD(handle.parameters(), lr=LEARNING_RATE)
    for step in steps:
        with rows(case.model, [handle.name]):
            loss = weighted_sum(model_output(case.model, batch, seed=step))
        term = handle.penalty() if penalty else None
        if term is not None:
            if term.dim() or not term.isfinite():
                raise Broken(f"the penalty is {term}, not a finite scalar")
            loss = loss + term
        loss.backward()
        optimizer.step()
        if after_step:
            handle.after_step((step + 1) / STEPS)
        take_gradients([handle])


def _copy(handle: Inlay) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in handle.training_state().items()}
