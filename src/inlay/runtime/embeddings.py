"""Whether a base computes from embeddings what it computes from the ids that they stand for.

Prompts and virtual tokens are vectors, so a pass that has any gets embeddings instead of ids. A
base may look up more than that by ids (embeddings of their own for every layer, the place of the
end of a text), and would compute something else, or nothing. Nobody is asked by name: a base that
has no description runs three tokens in both ways.
"""

from __future__ import annotations

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


def check_embeddings(method: str, chart: Chart, name: str) -> None:
    """Raise PortError where a method's vectors cannot take the place of token ids.

    name: of the stack.
    """
    described = FAMILIES.get(chart.base.config.model_type) is chart.family
    stack = chart.stack(name)
    if described or stack.embed is None or chart.kind not in ("decoder", "encoder"):
        return
    if stack.module not in _known:
        _known[stack.module] = _same(chart, stack)
    if not _known[stack.module]:
        raise PortError(
            f"{method} gives the base vectors in the place of token ids, and "
            f"{type(chart.base).__name__} computes something else without ids; use a method that "
            "acts inside the blocks, such as LoRA or Prefix"
        )


def _same(chart: Chart, stack: Stack) -> bool:
    """Run three tokens as ids and as embeddings."""
    assert stack.embed is not None
    ids = torch.arange(3, device=stack.module.device)[None] % stack.vocabulary
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
