"""Whether a base computes from embeddings what it computes from the ids that they stand for.

Prompts and virtual tokens are vectors, so a pass that has any gets embeddings instead of ids. A
base may look up more than that by ids (embeddings of their own for every layer, the place of the
end of a text), and would compute something else, or nothing. Nobody is asked by name: a base that
has no description runs three tokens in both ways.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from inlay.architectures.chart import Chart, Stack
from inlay.architectures.families import FAMILIES
from inlay.core.modes import evaluating
from inlay.errors import PortError
from inlay.runtime.container import container_of

FAILURES = (ValueError, TypeError, RuntimeError, AttributeError, LookupError, NotImplementedError)
"""How modelling files end without the ids that they need."""

CLOSE = 1e-3
"""How far two computations may differ, relative to the largest number."""

_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

_arrive: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether ids reach a stack."""


def check_embeddings(method: str, chart: Chart, name: str) -> None:
    """Raise PortError where a method's vectors cannot take the place of token ids.

    name: of the stack.
    """
    stack = chart.stack(name)
    if stack.embed is None:
        return
    if stack.module not in _known:
        takes = stack.takes("inputs_embeds")
        _known[stack.module] = takes and (_is_described(chart) or _same(chart, stack))
    if not _known[stack.module]:
        raise PortError(
            f"{method} gives the base vectors in the place of token ids, and "
            f"{type(chart.base).__name__} computes something else without ids; use a method that "
            "acts inside the blocks, such as LoRA or Prefix"
        )


def check_ids(method: str, chart: Chart, name: str) -> None:
    """Raise PortError where virtual tokens cannot be named, because another part embeds the text.

    name: of the stack.
    """
    stack = chart.stack(name)
    if _is_described(chart) or stack.module in (chart.base, chart.base.base_model):
        return
    if stack.module not in _arrive:
        with evaluating(chart.base):
            _arrive[stack.module] = _ids_arrive(chart, stack)
    if not _arrive[stack.module]:
        raise PortError(
            f"{method} stands where a text names its tokens, and {type(chart.base).__name__} hands "
            f"its {name} embeddings instead of ids; use Prompt, which needs no ids"
        )


def _is_described(chart: Chart) -> bool:
    return FAMILIES.get(chart.base.config.model_type) is chart.family


def _ids_arrive(chart: Chart, stack: Stack) -> bool:
    """Whether the base hands the ids of its text on to the stack; yes, where it cannot be run."""
    ids = torch.arange(3, device=chart.base.device)[None] % stack.vocabulary
    arrived: list[bool] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        arrived.append(any(t.shape == ids.shape and torch.equal(t, ids) for t in tensors))

    inputs = {"decoder_input_ids" if stack.reads_encoder else "input_ids": ids}
    if stack.reads_encoder and chart.reads_text:
        inputs["input_ids"] = ids
    hook = stack.module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        chart.base(**inputs)
    except FAILURES:
        pass  # the stack may have been reached before
    finally:
        hook.remove()
    return not arrived or arrived[-1]


def _same(chart: Chart, stack: Stack) -> bool:
    """Run three tokens as ids and as embeddings."""
    assert stack.embed is not None
    ids = torch.arange(3, device=chart.base.device)[None] % stack.vocabulary
    with evaluating(chart.base):
        try:
            expected = _states(chart, stack, input_ids=ids)
        except FAILURES:
            return True  # it wants more than a text, so nothing is known
        try:
            embeds = stack.embed(ids)
            states = _states(chart, stack, inputs_embeds=embeds, **stack.looked_up(ids))
        except FAILURES:
            return False
    off = (states - expected).abs().max() <= CLOSE * expected.abs().max()
    return bool(off)


def _states(chart: Chart, stack: Stack, **inputs: Tensor) -> Tensor:
    """The last hidden states of the bare base."""
    if stack.takes("use_cache"):
        inputs["use_cache"] = False  # type: ignore[assignment]
    container = container_of(chart.base)
    if container is None:
        return stack.last_hidden_state(**inputs)
    requested = container.routing.requested
    try:
        container.routing.request([None])
        return stack.module.forward(**inputs, return_dict=True).last_hidden_state
    finally:
        container.routing.restore(requested)
