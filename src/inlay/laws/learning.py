"""Laws about gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.utils.checkpoint import CheckpointError
from transformers import PreTrainedModel

from inlay.core.piece import HeadPiece
from inlay.handle import Inlay, attached
from inlay.laws.batches import Inputs, pad_batch
from inlay.laws.case import Broken, Case, Learner, NotApplicable, perturb
from inlay.laws.compare import (
    gradient_error,
    model_output,
    take_gradients,
    training_without_dropout,
    weighted_sum,
)

PASSES = 3
"""A rectifier may be shut for every token by chance, hardly in three passes."""


def only_pieces_learn(case: Case) -> float:
    """Every trained parameter gets a gradient, and nothing else does."""
    inputs = pad_batch(case.inputs(3))
    if not case.changes_outputs:
        raise NotApplicable("a head learns through the task's loss")
    with case.isolated(), case.inlay() as handle:
        check_parameter_groups(handle)
        weighted_sum(model_output(case.model, inputs)).backward()
        for _ in range(PASSES - 1):
            perturb(handle)
            weighted_sum(model_output(case.model, inputs)).backward()
        heads = [p.piece for p in handle.placed if isinstance(p.piece, HeadPiece)]
        of_heads = {id(p) for head in heads for p in head.parameters()}  # these learn by a task
        trained = {id(p) for p in handle.parameters()} - of_heads
        chosen = of_experts(handle)
        others = {id(p) for other in attached(case.model).values() for p in other.parameters()}
        for name, parameter in case.model.named_parameters():
            learns = parameter.requires_grad or parameter.grad is not None
            if id(parameter) in trained:
                if not parameter.requires_grad or parameter.grad is None:
                    raise Broken(f"{name} gets no gradient")
                if not parameter.grad.any() and id(parameter) not in chosen:
                    raise Broken(f"{name} gets a gradient that is zero everywhere")
            elif learns and id(parameter) not in others | of_heads:
                raise Broken(f"{name} is frozen and gets a gradient")
    return 0.0


def of_experts(handle: Inlay) -> set[int]:
    """Ids of the parameters at experts, of which some may get no token and so a gradient of zeros.

    Raises Broken where no expert of a mixture gets any other gradient, though its pieces have
    parameters of their own.
    """
    pieces: dict[tuple[int, str, int], list[Tensor | None]] = {}
    for placed in handle.placed:
        if placed.site.expert is not None:
            key = placed.index, placed.site.role, placed.site.layer or 0
            pieces.setdefault(key, []).extend(p.grad for p in placed.piece.parameters())
    for (_, role, layer), gradients in pieces.items():
        learned = [gradient is not None and bool(gradient.any()) for gradient in gradients]
        if learned and not any(learned):
            raise Broken(f"no {role} of block {layer} gets a gradient other than zero")
    experts = (placed.piece for placed in handle.placed if placed.site.expert is not None)
    return {id(parameter) for piece in experts for parameter in piece.parameters()}


def check_parameter_groups(handle: Inlay) -> None:
    """Raise Broken unless every trained parameter is in exactly one group."""
    grouped = [id(p) for group in handle.parameter_groups() for p in group.parameters]
    if len(grouped) != len(set(grouped)):
        raise Broken("a parameter is in two groups")
    if set(grouped) != {id(p) for p in handle.parameters()}:
        raise Broken("the groups are not all that is trained")


def checkpointing_keeps_gradients(case: Case) -> float:
    """Gradient checkpointing gives the same gradients, for the rows of each pass."""
    if not case.model.supports_gradient_checkpointing:
        raise NotApplicable("this base has no gradient checkpointing")
    if not case.changes_outputs:
        raise NotApplicable("a head learns outside the blocks")
    batch = pad_batch(case.inputs(2))
    with case.isolated(), case.learner() as first, case.learner("law-b", seed=5) as second:
        return compare_recomputed(case, [first, second], batch)


def compare_recomputed(case: Case, handles: list[Learner], batch: Inputs) -> float:
    """How far gradients with checkpointing are from those without, in training mode.

    batch: two rows. Two passes with different rows run before one backward: each must be
    recomputed as it was. Raises Broken where gradients differ.
    """
    model = case.model
    if (case.chart.decoder or case.chart.stacks[0]).takes("use_cache"):
        batch = {**batch, "use_cache": False}  # type: ignore[dict-item]
    first, second = (handle.name for handle in handles)

    def gradients() -> list[Tensor | None]:
        with case.serving([first, second]):
            one = weighted_sum(model_output(model, batch, seed=1))
        with case.serving([second, None]):
            two = weighted_sum(model_output(model, batch, seed=2))
        with case.serving([None]):
            (one + 2 * two).backward()
        return take_gradients(handles)

    worst = 0.0
    with training_without_dropout(model):
        plain = gradients()
        for reentrant in (False, True):
            with checkpointed(model, reentrant), learned_inputs(model, reentrant and case.bare):
                try:
                    recomputed = gradients()
                except CheckpointError as mismatch:
                    raise Broken(f"a recomputed block differs: {mismatch!s:.200}") from None
            error = gradient_error(recomputed, plain)
            if not error <= case.tolerance:
                how = " (use_reentrant=True)" if reentrant else ""
                raise Broken(f"gradients with checkpointing{how} are off by {error:.2e}")
            worst = max(worst, error)
    return worst


@contextmanager
def learned_inputs(model: PreTrainedModel, needed: bool) -> Iterator[None]:
    """Inside, embeddings have gradients where the bare base is asked, as a block then needs it."""
    if needed:
        model.enable_input_require_grads()
    try:
        yield
    finally:
        if needed:
            model.disable_input_require_grads()


SWITCHES = ("gradient_checkpointing", "_gradient_checkpointing_func")
HOOKS = ("_require_grads_hooks", "_require_grads_hook")


@contextmanager
def checkpointed(model: PreTrainedModel, reentrant: bool = False) -> Iterator[None]:
    """Inside, gradient checkpointing is on; its switches and hooks are put back afterwards."""
    switches = {
        part: {name: vars(part)[name] for name in SWITCHES if name in vars(part)}
        for part in model.modules()
    }
    hooks = {name: vars(model)[name] for name in HOOKS if name in vars(model)}
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    try:
        yield
    finally:
        for hook in vars(model).get("_require_grads_hooks", ()):
            if hook not in hooks.get("_require_grads_hooks", ()):
                hook.remove()
        for part, values in switches.items():
            for name in SWITCHES:
                vars(part).pop(name, None)
            vars(part).update(values)
        for name in HOOKS:
            vars(model).pop(name, None)
        vars(model).update(hooks)
