"""The door of a stack: what happens once per forward pass, before and after all blocks.

On the way in: the rows are bound, shared parts are renewed, positions are counted from the mask
where keys or slots need that, prompts are let in. On the way out: prompts are cut off again, and
the binding of rows is tied to the gradient, so that a recomputed block finds the rows of its own
pass however many passes came between.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache

from inlay.architectures.chart import STACK_HOOKS, Chart, Stack
from inlay.core.piece import SharedModule
from inlay.errors import DataError
from inlay.runtime import attention, extra_kv
from inlay.runtime.prompts import NOTE, PromptPort
from inlay.runtime.routing import Names, Routing
from inlay.runtime.shared_prefix import SharedPrefixPort
from inlay.runtime.stack_inputs import cached, text_of
from inlay.runtime.virtual_tokens import VirtualTokenPort


class StackHooks:
    """The hooks of one stack.

    trims: whether prompts are cut off at the exit (not for an encoder whose decoder reads them).
    sites: the attention of the stack that has a keys port. front: what runs apart in front of a
    causal stack; None where nothing can.
    """

    def __init__(self, chart: Chart, stack: Stack, route: Routing, limit: int | None, trims: bool):
        self.stack = stack
        self.route = route
        self.trims = trims
        self.limit = limit
        self.tokens = VirtualTokenPort(stack, route)
        self.shifts: dict[str, int] = {}
        self.slots = PromptPort(stack, route, self.tokens, limit)
        self.passing = extra_kv.Passing()
        self.sites = [
            s
            for s in chart.sites
            if s.heads and s.stack == stack.name and attention.has_port(s.host)
        ]
        self.keys = {s.name: extra_kv.ExtraKVPort(s.name, route, self.passing) for s in self.sites}
        ahead = chart.family.ahead and chart.kind == "decoder"
        self.front = (
            SharedPrefixPort(self, chart.family.absolute)
            if ahead and len(self.sites) == len(stack.layers)
            else None
        )
        self.upstream: StackHooks | None = None
        self.shared: dict[str, list[SharedModule]] = {}
        self._configs = attention.configs(stack.module)
        self._hooks: list[RemovableHandle] = []

    @property
    def adds_keys(self) -> bool:
        """Whether any piece adds keys to an attention of the stack."""
        return any(port.pieces for port in self.keys.values())

    def hang(self) -> None:
        """Put the hooks on."""
        module = self.stack.module
        self._hooks = [
            module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True),
            module.register_forward_hook(self._leave, prepend=True),
        ]
        setattr(module, STACK_HOOKS, self)
        for site in self.sites:
            setattr(site.host, attention.PORT, self.keys[site.name])

    def unhang(self) -> None:
        """Take the hooks off."""
        for handle in self._hooks:
            handle.remove()
        delattr(self.stack.module, STACK_HOOKS)
        for site in self.sites:
            delattr(site.host, attention.PORT)

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self.route.bind()
        if self.adds_keys:
            attention.check_way_in(self._configs)
        attention.enter(self._configs)
        for name in {name for row in self.route.bound for name in row}:
            for once in self.shared.get(name, ()):
                once.renew()
        self.tokens.asked = None
        if self.front is not None:
            self.front.forget()
        upstream = self.upstream
        widens = upstream is not None and upstream.slots.pieces
        adds_keys, adds_slots = self.adds_keys, bool(self.slots.pieces)
        names_tokens = bool(self.tokens.pieces)
        inputs = self._named(args, kwargs)
        self.passing.goes_on = cached(inputs) > 0
        apart = self.front is not None and self.front.takes(inputs)
        if not (adds_keys or adds_slots or names_tokens or widens or apart):
            return None
        if adds_keys or names_tokens:
            inputs = self._counted(inputs)
        moved = self.front.enter(inputs) if apart and self.front is not None else None
        if moved is None and adds_slots:
            moved = self.slots.enter(self._counted(inputs))
        inputs = self.tokens.enter(self._shifted(inputs if moved is None else moved))
        states = inputs.get("encoder_hidden_states")
        if widens and states is not None:
            assert upstream is not None
            mask = upstream.slots.widened(inputs.get("encoder_attention_mask"), states)
            inputs["encoder_attention_mask"] = mask
        return (), inputs

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        self._note(output)
        output = self.slots.leave(output) if self.trims else output
        self.slots.layout = None
        output = output if self.front is None else self.front.leave(output)
        states = output[0] if isinstance(output, tuple) else output.last_hidden_state
        if states.requires_grad:
            states.register_hook(self._rebind())
        self.passing.beside = None
        return output

    def shift(self, names: Names) -> int:
        """By how many positions these inlays' keys move the text back."""
        return sum(self.shifts.get(name, 0) for name in names)

    def _shifted(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs with the positions of every row moved back as its keys want it."""
        given = text_of(inputs)
        if given is None or not any(self.shift(names) for names in self.route.bound):
            return inputs
        batch, length = given.shape[:2]
        groups = self.route.groups(batch, self.shifts)
        assert groups is not None
        counts = torch.tensor([self.shift(names) for names in groups.names], device=given.device)
        rows = counts if groups.group is None else counts[groups.index(given.device)]
        positions = inputs.get("position_ids")
        if positions is None:
            before = cached(inputs)
            positions = torch.arange(before, before + length, device=given.device)
            positions = positions[None] + self.stack.position_start
        positions = positions + rows[:, None]
        last = None if self.limit is None else self.limit + self.stack.position_start
        if last is not None and int(positions.max()) >= last:
            raise DataError(
                f"a text of {length} tokens behind a prefix of {int(rows.max())} is longer than "
                f"the {self.limit} positions of this model; shorten the text"
            )
        return {**inputs, "position_ids": positions}

    def _note(self, output: Any) -> None:
        """Keep with a cache what stands in front of the texts in it."""
        beside = None if self.front is None else self.front.beside
        noted = self.slots.layout if beside is None else beside.front
        parts = output if isinstance(output, tuple) else (output.get("past_key_values"),)
        for part in parts:
            if isinstance(part, Cache) and noted is not None:
                setattr(part, NOTE, noted)

    def _rebind(self) -> Callable[[Tensor], None]:
        """What puts the rows and shared values of this pass back when its gradient arrives."""
        route, bound = self.route, self.route.bound
        passing, beside = self.passing, self.passing.beside
        tokens, asked = self.tokens, self.tokens.asked
        values = [(once, once.value) for ones in self.shared.values() for once in ones]

        def rebind(grad: Tensor) -> None:
            route.bound = bound
            passing.beside = beside
            tokens.asked = asked
            for once, value in values:
                once.value = value

        return rebind

    def widened(self, mask: Tensor | None, states: Tensor) -> Tensor | None:
        """The mask over this stack's states, which may have kept their prompts."""
        return mask if self.trims else self.slots.widened(mask, states)

    def narrowed(self, mask: Tensor | None, states: Tensor) -> Tensor:
        """This stack's states without the prompts that they may have kept, `[B, T, D]`."""
        return states if self.trims else self.slots.narrowed(mask, states)

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if not args:
            return dict(kwargs)
        signature = inspect.signature(type(self.stack.module).forward)
        names = [name for name in signature.parameters if name != "self"]
        return {**dict(zip(names, args, strict=False)), **kwargs}

    def _counted(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs with position ids counted from the padding mask, where none were given.

        Without them a left-padded row stands at other positions than the same row alone, which
        a rotary base by itself does not notice, but one with keys that do not move along does.
        """
        mask = inputs.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.dim() != 2 or not self.stack.takes("position_ids"):
            return inputs
        given = text_of(inputs)
        if inputs.get("position_ids") is not None or given is None:
            return inputs
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -given.shape[1] :]
        return {**inputs, "position_ids": positions + self.stack.position_start}
