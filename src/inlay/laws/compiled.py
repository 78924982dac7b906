"""The law of compiling: `torch.compile` in one piece gives what the model gives without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from transformers import CompileConfig

from inlay.handle import Inlay, rows
from inlay.laws.batches import Inputs, pad_batch, without_unserved_virtual_tokens
from inlay.laws.case import Broken, Case, NotApplicable
from inlay.laws.compare import (
    gradient_error,
    require_close,
    take_gradients,
    training_without_dropout,
    weighted_sum,
)
from inlay.laws.generation import OPTIONS, rows_to_continue

BACKEND = "aot_eager"
"""Traces a pass and its backward as a whole, and writes no kernels: quick, and equal in digits."""

GRADIENT_SLACK = 30
"""How much further gradients may be off: a relu near zero turns over with the last digit."""

KEPT_BY_GENERATE = ("_compiled_call", "_last_compile_config", "_previous_max_cache_length")
"""What `generate` keeps on a model that it compiled."""


def compiled_equals_eager(case: Case) -> float:
    """Compiled without a break: the same outputs under the same names, gradients and next tokens.

    In training, with rows of several inlays; and token by token, as `generate` does with a static
    cache, with one inlay and with several. Where the base alone does not compile, the law says
    nothing.
    """
    model, batch = case.model, pad_batch(case.inputs(3))
    try:
        with case.isolated(), case.inlay() as first, case.inlay("law-b", seed=5) as second:
            with training_without_dropout(model), rows(model, ["law", None, "law-b"]):
                worst = _training(case, [first, second], batch)
            generates = model.can_generate() and case.chart.kind == "decoder"
            if generates and case.tolerance < 1e-3:
                for names in (["law"], ["law", None, "law-b"]):
                    with rows(model, names), torch.no_grad():
                        worst = max(worst, _decoding(case))
    except TorchDynamoException as error:
        _require_base(case, batch)
        raise Broken(f"it does not compile in one piece: {_reason(error)}") from None
    return worst


def _require_base(case: Case, batch: Inputs) -> None:
    """Raise NotApplicable where the base alone does not compile."""
    try:
        with case.isolated(), fresh_compiler():
            _compiled(case.model)(**without_unserved_virtual_tokens(case.model, batch))
    except TorchDynamoException as error:
        raise NotApplicable(f"the base alone does not compile: {_reason(error)}") from None


def _training(case: Case, handles: list[Inlay], batch: Inputs) -> float:
    """One pass with its gradients, compiled and not."""
    batch = without_unserved_virtual_tokens(case.model, batch)
    outputs, gradients = [], []
    with fresh_compiler():
        for run in (_compiled(case.model), case.model):
            with seeded():
                output = run(**batch)
            result = output.get("logits", output.get("last_hidden_state"))
            if result.requires_grad:
                weighted_sum(result.float()).backward()
            outputs.append((list(output), result.detach().float()))
            taken = take_gradients(handles)
            gradients.append(_all(taken) if case.draws else taken)
    (compiled_names, compiled), (names, eager) = outputs
    if compiled_names != names:
        raise Broken(f"compiled, the output has {compiled_names} instead of {names}")
    error = gradient_error(*gradients)
    if not error <= case.tolerance * GRADIENT_SLACK:
        raise Broken(f"gradients of the compiled pass are off by {error:.2e}")
    return max(error, require_close(case, compiled, eager, "compiled", 3))


def _decoding(case: Case) -> float:
    """Logits of some tokens that `generate` writes with a static cache, compiled and not."""
    model: Any = case.model
    text = without_unserved_virtual_tokens(model, rows_to_continue(case))
    how: Any = CompileConfig(fullgraph=True, backend=BACKEND, dynamic=False)
    how.mode = None  # another backend than torch's own has none
    how._compile_all_devices = True
    options = {**OPTIONS, "cache_implementation": "static"}
    before = {name: vars(model)[name] for name in KEPT_BY_GENERATE if name in vars(model)}
    try:
        with fresh_compiler():
            with seeded():
                compiled = model.generate(**text, **options, compile_config=how)
            with seeded():
                eager = model.generate(**text, **options, disable_compile=True)
    finally:
        for name in KEPT_BY_GENERATE:
            vars(model).pop(name, None)
        vars(model).update(before)
    result, expected = (torch.stack(output.logits, 1).float() for output in (compiled, eager))
    return require_close(case, result, expected, "compiled, token by token", 3)


def _compiled(model: Any) -> Any:
    return torch.compile(model, fullgraph=True, backend=BACKEND, dynamic=False)


def _all(gradients: list[Tensor | None]) -> list[Tensor | None]:
    """Gradients, with zeros for none: what a pass drops, a compiled one gives zeros."""
    return [torch.zeros(()) if gradient is None else gradient for gradient in gradients]


@contextmanager
def seeded() -> Iterator[None]:
    """Inside, what is drawn at random is always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def fresh_compiler() -> Iterator[None]:
    """Inside, nothing is compiled yet, and afterwards nothing any more."""
    torch._dynamo.reset()
    try:
        yield
    finally:
        torch._dynamo.reset()
