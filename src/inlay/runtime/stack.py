"""StackHooks: what happens once per forward pass of a stack, before and after all blocks.

Before: the rows are bound, modules that run once per pass are renewed, positions are counted from
the padding mask where extra keys or prompts need that, prompts and virtual tokens are inserted.
After: side networks act, prompts are cut off, and what ports know of this pass is tied to the
gradient of its output, so that a block that is recomputed in backward finds its own pass:

    pass 1   bound = A    output.register_hook(put A back)
    pass 2   bound = B    output.register_hook(put B back)
    backward of pass 1    its gradient arrives at the output: A is put back, then blocks recompute

Without that, a recomputed block of pass 1 would be served as the rows of pass 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache

from inlay.architectures.chart import Chart, Stack
from inlay.core.context import PassContext
from inlay.core.per_thread import PerThread
from inlay.core.piece import OncePerPass
from inlay.errors import DataError
from inlay.runtime import attention
from inlay.runtime.cache_length import count_positions, count_text
from inlay.runtime.checkpointing import is_reentrant, with_gradient
from inlay.runtime.extra_kv import ExtraKVPort
from inlay.runtime.pass_checks import check_continuous_batching, check_packed, check_rows
from inlay.runtime.port import StackState
from inlay.runtime.positions import Positions
from inlay.runtime.prompts import BEFORE, PromptLayout, PromptPort, flat_mask
from inlay.runtime.reminder import Reminder
from inlay.runtime.routing import Groups, Routing
from inlay.runtime.shared_prefix import PrefixRunner
from inlay.runtime.stack_inputs import (
    arange,
    by_name,
    cache_of,
    cached,
    continues,
    note_length,
    readable,
    tensors,
    text_of,
)
from inlay.runtime.virtual_tokens import VirtualTokenPort

OWN_ORDER = (ExtraKVPort, PromptPort, VirtualTokenPort)
"""Ports whose part in a pass depends on that of the others, so that it is written out here."""


class _Pass(PerThread):
    """The pass of this thread.

    entered: whether it entered the stack while the hooks were on. reentrant: whether its blocks
    run under gradient checkpointing of the kind that goes back by itself.
    """

    __slots__ = ()
    entered: bool = False
    reentrant: bool = False


class StackHooks:
    """The hooks of one stack, and what its ports share.

    trims:    whether prompts are cut off at the end (not for an encoder whose decoder reads them).
    prefix:   what runs separately before a causal stack; None where nothing can.
    upstream: the stack whose states this one reads, in an encoder–decoder.
    once:     the modules that run once per pass, by inlay. reminders: see `Reminder`.
    """

    def __init__(
        self, chart: Chart, stack: Stack, routing: Routing, limit: int | None, trims: bool
    ):
        self.stack = stack
        self.routing = routing
        self.trims = trims
        self.state = StackState(chart, stack, routing, limit)
        self.tokens = self.state.port(VirtualTokenPort)
        self.prompts = self.state.port(PromptPort)
        self.extra_kv = self.state.port(ExtraKVPort)
        separable = chart.family.shares_prefix and chart.kind == "decoder"
        separable = separable and len(self.extra_kv.sites) == len(stack.layers)
        self.prefix = PrefixRunner(self.state, chart.family.position_table) if separable else None
        self.upstream: StackHooks | None = None
        self.once: dict[str, list[OncePerPass]] = {}
        self.reminders: dict[str, Reminder] = {}
        self.positions = Positions(self.state)
        self._configs = attention.configs(stack.module) or [stack.config]
        self._pass = _Pass()
        self._hooks: list[RemovableHandle] = []

    def hook(self) -> None:
        """Put the hooks on."""
        module = self.stack.module
        self._hooks = [
            module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True),
            module.register_forward_hook(self._leave, prepend=True),
        ]
        if self.stack.embed is not None:
            self._hooks.append(self.stack.embed.register_forward_hook(self._embedded))
        for extra_kv in self.extra_kv.sites.values():
            attention.redirect(extra_kv.site.host, extra_kv)

    def unhook(self) -> None:
        """Take the hooks off."""
        for handle in self._hooks:
            handle.remove()
        for extra_kv in self.extra_kv.sites.values():
            attention.restore(extra_kv.site.host)

    def remove(self, name: str) -> None:
        """Take out all that belongs to an inlay."""
        for port in self.state.ports.values():
            port.remove(name)
        self.state.shifts.pop(name, None)
        self.state.drawing.discard(name)
        self.state.relating.discard(name)
        self.once.pop(name, None)
        self.reminders.pop(name, None)

    def widened(self, mask: Tensor | None, states: Tensor) -> Tensor | None:
        """The padding mask over this stack's last states, which may have kept their prompts."""
        return mask if self.trims else self.prompts.widened(mask, states)

    def narrowed(self, mask: Tensor | None, states: Tensor) -> Tensor:
        """This stack's last states without the prompts that they may have kept, `[B, T, D]`."""
        return states if self.trims else self.prompts.narrowed(mask, states)

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.routing.enabled:  # the last inlay was detached while this thread waited
            return None
        self._pass.entered = True
        inputs = by_name(self.stack, args, kwargs)
        for port in self.state.ports.values():
            inputs = port.receive(inputs)
        count_positions(cache_of(inputs))
        self._begin_pass(inputs)
        for port in self.state.ports.values():
            if not isinstance(port, OWN_ORDER):
                inputs = port.enter(inputs)
        inputs = self._insert(inputs)
        self.state.context = self._context(inputs)
        return (), with_gradient(inputs) if self._pass.reentrant else inputs

    def _context(self, inputs: dict[str, Any]) -> PassContext:
        """What pieces may know of a pass with these inputs."""
        text, goes_on = text_of(inputs), self.extra_kv.attention_pass.continues
        batch = 0 if text is None else len(text)
        context = replace(
            self.state.context, continues=goes_on, cache=cache_of(inputs), batch=batch
        )
        if text is None or self.routing.serving().isdisjoint(self.state.relating):
            return context
        mask, cache = inputs.get("attention_mask"), inputs.get("past_key_values")
        source = inputs.get("encoder_attention_mask")
        return replace(
            context,
            mask=flat_mask(mask, cache, cached(inputs) + text.shape[1]),
            source_mask=source if isinstance(source, Tensor) and source.dim() == 2 else None,
        )

    def _begin_pass(self, inputs: dict[str, Any]) -> None:
        """Bind the rows and drop what the last pass left."""
        self.routing.bind()
        check_rows(self.routing, inputs)
        check_continuous_batching(self.state, inputs)
        check_packed(self.state, inputs)
        self._pass.reentrant = is_reentrant(self.stack)
        if not self.extra_kv.empty:
            attention.check_implementation(self._configs)
        serving = self.routing.serving()
        for name in serving:
            if torch.is_grad_enabled():  # loops may train in evaluation mode
                self.reminders[name].training_pass()
            for once in self.once.get(name, ()):
                once.forget() if self._pass.reentrant else once.renew()
        draws = not serving.isdisjoint(self.state.drawing)
        self.state.context = PassContext(seed=_seed() if draws else None)
        self.tokens.positions = None
        self.prompts.layout = None
        if self.prefix is not None:
            self.prefix.forget()
        self.extra_kv.attention_pass.continues = continues(inputs)
        self.state.measure_rows(inputs)

    def _insert(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Insert prompts and virtual tokens, or have them run separately."""
        upstream = self.upstream
        widens = upstream is not None and upstream.prompts.pieces
        separate = self.prefix is not None and not self._pass.reentrant
        separate = separate and self.prefix is not None and self.prefix.takes(inputs)
        adds_keys, prompts = not self.extra_kv.empty, bool(self.prompts.pieces)
        if not (adds_keys or prompts or self.tokens.pieces or widens or separate):
            return inputs
        counts = self._counted_rows(inputs)
        mixed = counts is not None and not all(counts.names)
        if mixed:  # rows with nothing before their texts stand where the base alone puts them
            inputs = self._counted(inputs, counts)
        rest = self.prefix.remove(inputs) if separate and self.prefix is not None else None
        if rest is None and not mixed:
            inputs = self._counted(inputs, counts)
        if rest is None and prompts:
            rest = self.prompts.insert(inputs)
        inputs = self.tokens.enter(self._shifted(inputs if rest is None else rest))
        states = inputs.get("encoder_hidden_states")
        if widens and states is not None:
            assert upstream is not None
            mask = upstream.prompts.widened(inputs.get("encoder_attention_mask"), states)
            inputs["encoder_attention_mask"] = mask
        return inputs

    def _counted_rows(self, inputs: dict[str, Any]) -> Groups | None:
        """The rows by the inlays that put something before the text; None where none does."""
        text = text_of(inputs)
        names = self.extra_kv.names | self.prompts.pieces.keys() | self.tokens.pieces.keys()
        return None if text is None else self.routing.groups(len(text), names)

    def _counted(self, inputs: dict[str, Any], groups: Groups | None) -> dict[str, Any]:
        """The inputs with positions for the rows that have something before their texts."""
        return inputs if groups is None else self.positions.counted(inputs, groups)

    def _embedded(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Let checkpointed blocks learn, where these ask whether their input does."""
        if self._pass.reentrant and torch.is_grad_enabled() and not output.requires_grad:
            return output.requires_grad_()
        return None

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not self._pass.entered:  # the first inlay was attached while this thread was inside
            return output
        self._pass.entered = False
        self._keep_on_cache(output)
        output = output if self.prefix is None else self.prefix.restore(output)
        for port in self.state.ports.values():
            if not isinstance(port, OWN_ORDER):
                output = port.leave(output)
        output = self.prompts.trim(output) if self.trims else output
        self.prompts.layout = None
        for states in tensors(output):
            if states.requires_grad and not torch.compiler.is_compiling():
                states.register_hook(self._put_back())
                break
        self._forget()
        return output

    def _forget(self) -> None:
        """Drop what is known of a pass that is over: it may be large, and no copy can have it."""
        self._pass.reentrant = False
        self.state.context = replace(self.state.context, cache=None)
        self.tokens.positions = None
        self.extra_kv.attention_pass.prefix = None
        if self.prefix is not None:
            self.prefix.forget()
            self.prefix.openings.read(None, {})
        for modules in self.once.values():
            for once in modules:
                once.forget()

    def _shifted(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs with the positions of every row moved back as its extra keys want it."""
        text, shift, limit = text_of(inputs), self.state.shift, self.state.limit
        if text is None or not any(shift(names) for names in self.routing.bound):
            return inputs
        batch, length = text.shape[:2]
        groups = self.routing.groups(batch, self.state.shifts)
        assert groups is not None
        shifts = [shift(names) for names in groups.names]
        positions, before = inputs.get("position_ids"), cached(inputs)
        if positions is None:
            positions = arange(text, before) + self.stack.position_start
        positions = positions + groups.by_row(shifts, text.device)[:, None]
        longest = length + max(shifts) + (before if isinstance(before, int) else 0)
        if limit is not None and (readable(positions) or longest > limit):
            self._check_room(positions, length, max(shifts), limit)
        return {**inputs, "position_ids": positions}

    def _check_room(self, positions: Tensor, length: int, shift: int, limit: int) -> None:
        """Raise DataError for positions behind the last one of a table; asks their device."""
        if torch.compiler.is_compiling():
            return
        if int(positions.max()) >= limit + self.stack.position_start:
            raise DataError(
                f"a text of {length} tokens after a prefix of {shift} is longer than "
                f"the {limit} positions of this model; shorten the text"
            )

    def _keep_on_cache(self, output: Any) -> None:
        """Keep with a cache what stands before the texts in it."""
        view = None if self.prefix is None else self.prefix.view
        before = self.prompts.layout if view is None else view.prefix
        named = (output.get("past_key_values"),) if isinstance(output, dict) else ()
        parts = output if isinstance(output, tuple) else named
        for part in parts:
            if not isinstance(part, Cache):
                continue
            note_length(part)
            if before is not None:
                setattr(part, BEFORE, before)
            kept = vars(part).get(BEFORE)
            if isinstance(kept, PromptLayout):
                count_text(part, kept.extra)

    def _put_back(self) -> Callable[[Tensor], None]:
        """A hook for the gradient of the output: puts back what this pass was like."""
        state, routing, tokens = self.state, self.routing, self.tokens
        attention_pass = self.extra_kv.attention_pass
        bound, context = routing.bound, state.context
        prefix, positions = attention_pass.prefix, tokens.positions
        values = [(once, once.value) for modules in self.once.values() for once in modules]

        def put_back(grad: Tensor) -> None:
            routing.bound, state.context = bound, context
            attention_pass.prefix, tokens.positions = prefix, positions
            for once, value in values:
                once.value = value
            after_backward(forget)

        def forget() -> None:
            self._forget()
            routing.restore(routing.requested)

        return put_back


def after_backward(run: Callable[[], None]) -> None:
    """Run something when the backward pass under way is over. To be called in one of its hooks."""
    Variable._execution_engine.queue_callback(run)


def _seed() -> int | Tensor:
    """A number for the draws of one pass, from torch's own generator: resumed runs repeat it."""
    seed = torch.randint(2**62, ())
    if torch.compiler.is_compiling():
        return seed
    return int(seed.numpy())  # it is on the CPU: no operation of torch has to read it
