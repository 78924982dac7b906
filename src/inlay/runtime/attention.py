"""The entrance to attention: our own functions in transformers' attention interface.

They receive q, k, v after rotary embedding and after the cache was updated, let the module's
`SiteExtraKV` change them, and pass them on to the function that the base runs (while a base in
bf16 is trained on a CPU, to `runtime.short_attention`).

The base's config keeps its name for the implementation: modelling files compare it with words,
other parts of transformers print it. Only an attention that takes extra keys reads another one,
from a view of the same config:

    model.config._attn_implementation                 "sdpa"        masks, generate, the user
    model…self_attn.config._attn_implementation       "inlay_sdpa"  -> `_attention` below
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from inspect import unwrap
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from inlay.errors import PortError
from inlay.runtime.short_attention import Short, in_training

EXTRA_KV = "inlay_extra_kv"
"""The attribute under which an attention module keeps its `SiteExtraKV`, while it has one."""

OURS = {"sdpa": "inlay_sdpa", "eager": "inlay_eager"}
"""Our function for each implementation of transformers."""

ONLY_WHERE = {
    "GPT2Attention": "reorder_and_upcast_attn",
    "DecisionTransformerGPT2Attention": "reorder_and_upcast_attn",
}
"""Attentions that compare the name of their implementation only where this attribute is set."""


class Redirected:
    """A base's config as one attention sees it: the same, with our name for the implementation."""

    def __init__(self, config: Any):
        self.shared = config

    @property
    def _attn_implementation(self) -> Any:
        name = self.shared._attn_implementation
        return OURS.get(name, name)

    def __getattr__(self, name: str) -> Any:
        if name == "shared" or name.startswith("__"):  # while a copy is being made
            raise AttributeError(name)
        return getattr(self.shared, name)


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


def redirect(core: nn.Module, extra_kv: Any) -> None:
    """Lead an attention into our functions, where `extra_kv` changes its keys and values."""
    if not isinstance(core.config, Redirected):
        core.__dict__["config"] = Redirected(core.config)
    setattr(core, EXTRA_KV, extra_kv)


def restore(core: nn.Module) -> None:
    """Lead an attention back."""
    if isinstance(core.config, Redirected):
        core.__dict__["config"] = core.config.shared
        delattr(core, EXTRA_KV)


def has_port(core: nn.Module) -> bool:
    """Whether an attention asks transformers' interface for its function, by its config's name.

    One that compares that name with words as well has no port: with our name it would do
    something else.
    """
    if vars(core).get("config") is None or not _asks_the_interface(core):
        return False
    only_where = ONLY_WHERE.get(type(core).__name__)
    if only_where is not None and not vars(core)[only_where]:
        return True
    return not _compares_the_name(core)


def _asks_the_interface(core: nn.Module) -> bool:
    return any("ALL_ATTENTION_FUNCTIONS" in method.__code__.co_names for method in _methods(core))


def _compares_the_name(core: nn.Module) -> bool:
    """Whether a method that reads the name of the implementation knows one by itself."""
    readers = (m.__code__ for m in _methods(core) if "_attn_implementation" in m.__code__.co_names)
    constants = [constant for code in readers for constant in code.co_consts]
    words = [w for c in constants for w in (c if isinstance(c, tuple | frozenset) else (c,))]
    return any(word in words for word in OURS)


def _methods(core: nn.Module) -> Iterator[FunctionType]:
    """The methods of a module's class that modelling files wrote."""
    for kind in type(core).__mro__:
        if kind is nn.Module:
            return
        for value in vars(kind).values():
            if isinstance(value, FunctionType):
                method = unwrap(value)
                if isinstance(method, FunctionType):
                    yield method


def configs(model: nn.Module) -> list[Any]:
    """Every config that some part of the base reads its attention implementation from."""
    by_id = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    return list(by_id.values())


def has_implementation(configs: list[Any]) -> bool:
    """Whether every attention runs an implementation that ours can stand for."""
    return all(config._attn_implementation in OURS for config in configs)


def check_implementation(configs: list[Any]) -> None:
    """Raise PortError where the base runs an attention that ours cannot stand for."""
    for config in configs:
        if config._attn_implementation not in OURS:
            raise PortError(
                f"extra keys need sdpa or eager attention, and this model uses "
                f"{config._attn_implementation!r}; call model.set_attn_implementation('sdpa') first"
            )


@contextmanager
def eagerly(model: PreTrainedModel) -> Iterator[None]:
    """Inside, all attention is eager, whatever the base runs."""
    before = [(config, config._attn_implementation) for config in configs(model)]
    try:
        for config, _ in before:
            config._attn_implementation_internal = "eager"
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name
