"""The entrance to attention: our own functions in transformers' attention interface.

They receive q, k, v after rotary embedding and after the cache was updated, let the module's
`SiteExtraKV` change them, and pass them on to the function that the base ran before (while a base
in bf16 is trained on a CPU, to `runtime.short_attention`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from inlay.errors import PortError
from inlay.runtime.short_attention import Short, in_training

EXTRA_KV = "inlay_extra_kv"
"""The attribute under which an attention module keeps its `SiteExtraKV`, while it has one."""

OURS = {"sdpa": "inlay_sdpa", "eager": "inlay_eager"}
"""Our function for each implementation of transformers."""

THEIRS = {ours: theirs for theirs, ours in OURS.items()}


def _attention(inner: Callable | None, module: nn.Module, query: Tensor, key: Tensor,
               value: Tensor, attention_mask: Any = None, **more: Any) -> Any:  # fmt: skip
    q, k, v, mask = query, key, value, attention_mask  # modelling files give them by name too
    port = vars(module).get(EXTRA_KV)
    queries = q.shape[2]
    if port is not None:
        q, k, v, mask, more = port.extend(module, q, k, v, mask, more, inner is not None)
    short = inner is not None and port is not None and in_training(q, k, v)
    if inner is None and mask is not None and mask.dtype == torch.bool:  # eager attention adds it
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
    with Short(k, v) if short else nullcontext():
        output, weights = (inner or _eager(module))(module, q, k, v, mask, **more)
    if port is not None and weights is not None:
        port.observe(weights, mask)
    return output[:, -queries:], weights


def _eager(module: nn.Module) -> Callable:
    """The eager attention of the file that the module's class comes from."""
    for kind in type(module).__mro__:
        function = vars(sys.modules[kind.__module__]).get("eager_attention_forward")
        if function is not None:
            return function
    raise PortError(f"{type(module).__name__} has no eager attention function")


AttentionInterface.register(OURS["sdpa"], partial(_attention, sdpa_attention_forward))
AttentionInterface.register(OURS["eager"], partial(_attention, None))
AttentionMaskInterface.register(OURS["sdpa"], sdpa_mask)
AttentionMaskInterface.register(OURS["eager"], eager_mask)


def has_port(core: nn.Module) -> bool:
    """Whether an attention module goes through transformers' attention interface."""
    return "ALL_ATTENTION_FUNCTIONS" in vars(sys.modules[type(core).__module__])


def configs(model: nn.Module) -> list[Any]:
    """Every config that some part of the base reads its attention implementation from."""
    by_id = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    return list(by_id.values())


def has_implementation(configs: list[Any]) -> bool:
    """Whether every attention runs in our functions, or can be made to."""
    known = (config._attn_implementation for config in configs)
    return all(name in OURS or name in THEIRS for name in known)


def check_implementation(configs: list[Any]) -> None:
    """Raise PortError where the base runs an attention that ours cannot stand for."""
    for config in configs:
        theirs = config._attn_implementation
        if theirs not in OURS and theirs not in THEIRS:
            raise PortError(
                f"extra keys need sdpa or eager attention, and this model uses {theirs!r}; "
                "call model.set_attn_implementation('sdpa') first"
            )


def enter(configs: list[Any]) -> None:
    """Switch attention to our functions where that is possible; cheap enough for every pass."""
    for config in configs:
        theirs = config._attn_implementation
        config._attn_implementation_internal = OURS.get(theirs, theirs)


def leave(configs: list[Any]) -> None:
    """Switch attention back to the base's own functions."""
    for config in configs:
        ours = config._attn_implementation
        if ours in THEIRS:
            config._attn_implementation_internal = THEIRS[ours]


@contextmanager
def eagerly(model: PreTrainedModel) -> Iterator[None]:
    """Inside, all attention is eager and runs in our functions, whatever the base runs."""
    before = [(config, config._attn_implementation) for config in configs(model)]
    try:
        for config, _ in before:
            config._attn_implementation_internal = OURS["eager"]
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name
