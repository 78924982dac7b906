"""Running a model, and comparing what it computes in two ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inlay.handle import attached, rows
from inlay.laws.batches import Inputs, Pad, paddings, row_output, without_unserved_virtual_tokens
from inlay.laws.case import Broken, Case, Learner


def model_output(model: PreTrainedModel, inputs: Inputs, seed: int = 0) -> Tensor:
    """What the model computes, in fp32: logits where it has a head, else the last hidden state.

    seed: where the random numbers of the pass start; equal seeds draw equal numbers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        output = model(**without_unserved_virtual_tokens(model, inputs))
    logits = output.get("logits")
    return (output.last_hidden_state if logits is None else logits).float()


def relative_error(result: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number expected; inf for other shapes."""
    if result.shape != expected.shape:
        return float("inf")
    size = max(1e-6, expected.abs().max().item())
    return (result - expected).abs().max().item() / size


def require_close(
    case: Case, result: Tensor, expected: Tensor, what: str, slack: float = 1.0
) -> float:
    """The relative error. Raises Broken where it is above `slack` times the case's tolerance."""
    error = relative_error(result, expected)
    if not error <= case.tolerance * slack:
        raise Broken(f"{what}: off by {error:.2e}, allowed {case.tolerance * slack:.1e}")
    return error


def weighted_sum(output: Tensor) -> Tensor:
    """A scalar to which every number of the output contributes with another weight."""
    flat = output.flatten(1)
    weights = torch.linspace(-1, 1, flat.shape[1], device=output.device).cos() + 0.5
    return (flat * weights).sum() / flat.shape[1] ** 0.5


def weighted_sum_of_rows(case: Case, output: Tensor, rows: Sequence[Inputs]) -> Tensor:
    """The sum over the rows of a batch padded on the right, padding left out."""
    outputs = (row_output(case.chart, output, i, row, "right") for i, row in enumerate(rows))
    return torch.stack([weighted_sum(row) for row in outputs]).sum()


def take_gradients(handles: Sequence[Learner]) -> list[Tensor | None]:
    """The gradients of all trained parameters, which then have none."""
    parameters = [p for handle in handles for p in handle.parameters()]
    gradients = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradients


def gradient_error(gradients: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> float:
    """The largest difference, relative to the largest gradient expected.

    Raises Broken where another set of parameters has gradients.
    """
    if [g is None for g in gradients] != [g is None for g in expected]:
        raise Broken("gradients reach other parameters than they should")
    pairs = [
        (a, b) for a, b in zip(gradients, expected, strict=True) if a is not None and b is not None
    ]
    size = max((float(b.abs().max()) for _, b in pairs), default=0.0)
    worst = max((float((a - b).abs().max()) for a, b in pairs), default=0.0)
    return worst / max(size, 1e-6)


def valid_paddings(case: Case, singles: list[Inputs]) -> list[tuple[str, Pad]]:
    """The ways of padding under which the base alone computes for a row what the row alone does.

    To be called before anything is attached.
    """
    valid = []
    for side, pad in paddings(case.chart):
        with torch.no_grad(), base_alone(case):
            output = model_output(case.model, pad(singles))
            errors = [
                relative_error(
                    row_output(case.chart, output, i, single, side),
                    model_output(case.model, single),
                )
                for i, single in enumerate(singles)
            ]
        if max(errors) <= case.tolerance * 3:
            valid.append((side, pad))
    return valid


@contextmanager
def base_alone(case: Case) -> Iterator[None]:
    """Inside, no inlay serves any row."""
    if attached(case.model):
        with rows(case.model, [None]):
            yield
    else:
        yield


@contextmanager
def training_without_dropout(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model and its pieces are in training mode, with every dropout rate at 0."""
    modes = {part: part.training for part in model.modules()}
    rates: list[tuple[Any, str, float]] = []
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            rates.append((part, "p", part.p))
        for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            value = vars(part).get(name)
            if isinstance(value, float):
                rates.append((part, name, value))
    try:
        model.train()
        for part, name, _ in rates:
            setattr(part, name, 0.0)
        yield
    finally:
        for part, name, rate in rates:
            setattr(part, name, rate)
        for part, mode in modes.items():
            part.training = mode
