"""Reuse: blocks on which no piece acts compute the same for a row in every pass, so they run once.

    first pass over a row     block 0 … block k-1 run; what block k-1 computes is kept
    later passes              block 0 … block k-1 hand their input on; block k-1 returns what was
                              kept; from block k on all is as ever

A row is known by what the stack reads of it: its ids, its mask, its kinds and positions of tokens,
and in a decoder the row of the encoder. So any task, any batch and any padding finds it again. A
batch skips the blocks where all of its rows are kept.

A hook cannot keep a module from running, so inside the `with` the `forward` of these blocks is
replaced, on the instance. Whether a base allows this is measured before: two small texts run both
ways.

The rows' ids are looked at on the CPU: on another device that waits once a pass, for less than the
blocks would take.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from inlay.architectures.chart import Stack, last_state
from inlay.core.modes import evaluating
from inlay.core.per_thread import PerThread
from inlay.runtime.checkpointing import is_reentrant
from inlay.runtime.container import container_of
from inlay.runtime.shared_layers import untouched_layers
from inlay.runtime.side import SidePort
from inlay.runtime.stack import StackHooks
from inlay.runtime.stack_inputs import by_name, first_input

OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
"""Inputs with a number for each token, `[B, T]`."""

WITHOUT_EFFECT = ("return_dict", "encoder_hidden_states", "encoder_attention_mask")
"""Inputs that change nothing of a row, or are known by the encoder's rows."""

CLOSE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""How far the two ways may differ, relative to the size of the states; of narrower types `NEAR`."""

NEAR = 3e-2


class ActivationStore(Protocol):
    """Where the activations of rows are kept."""

    def get(self, key: bytes) -> Tensor | None:
        """What was kept under a key, `[t, W]` on the CPU; None where nothing was."""

    def put(self, key: bytes, states: Tensor) -> None:
        """Keep states `[t, W]`, which are on the CPU, where there is room for them."""


class _Dictionary(dict[bytes, Tensor]):
    """A store for two small texts."""

    def put(self, key: bytes, states: Tensor) -> None:
        self[key] = states


@dataclass(frozen=True)
class Rows:
    """The rows of a pass: a key for each, and how many of its positions are not padding."""

    keys: tuple[bytes, ...]
    lengths: tuple[int, ...]


class _Pass(PerThread):
    """The pass of this thread over the stack.

    rows: None where nothing can be reused or kept. kept: what blocks return, by their number; None
    where they run. computed: what they computed, by their number. others: what the first block
    returned besides the states.
    """

    __slots__ = ()
    rows: Rows | None = None
    kept: dict[int, Tensor] | None = None
    computed: dict[int, Tensor] | None = None
    others: tuple[Any, ...] | None = None


class StackReuse:
    """The first blocks of one stack, which run once for each row.

    Args:
        hooks: of the stack.
        layers: k, how many blocks there are on which no piece acts.
        upstream: the same of the encoder whose states the stack reads, if it reads any.

    _forms: what each block returns besides states; None where it returns them bare.
    _hands_on: whether the first block computes more, which the others are given and return, such
        as T5's bias of positions: then it runs in any case.
    dtype, width: of what is kept of a token, after `measure`. example: last states of two texts,
        `[2, T, D]`, after it.
    passes: rows that went through these blocks; skipped: rows that did not have to.
    """

    def __init__(self, hooks: StackHooks, layers: int, upstream: StackReuse | None):
        self.hooks = hooks
        self.stack: Stack = hooks.stack
        self.layers = layers
        self.upstream = upstream
        every = bool(hooks.state.port(SidePort).pieces)
        self.numbers = tuple(range(layers)) if every else (layers - 1,)
        self.dtype, self.width = torch.float32, 0
        self.passes = self.skipped = 0
        self.store: ActivationStore = _Dictionary()
        self._forms: dict[int, tuple[Any, ...] | None] = {}
        self._hands_on = False
        self._pass = _Pass()
        self.example: Tensor | None = None
        self._latest: tuple[Tensor, Rows] | None = None

    @property
    def bytes_of_token(self) -> int:
        """How many bytes are kept of a token."""
        return self.width * self.dtype.itemsize

    @contextmanager
    def reusing(self, store: ActivationStore) -> Iterator[None]:
        """Inside, the blocks run once for each row; afterwards all is as before."""
        self.store = store
        self.passes = self.skipped = 0
        prefix = self.hooks.prefix
        with ExitStack() as stack:
            if prefix is not None:  # an opening that ran alone would be missing in the rows
                stack.callback(setattr, prefix, "enabled", prefix.enabled)
                prefix.enabled = False
            module = self.stack.module
            enter = module.register_forward_pre_hook(self._enter, with_kwargs=True)
            stack.callback(enter.remove)
            leave = module.register_forward_hook(self._leave, always_call=True)
            stack.callback(leave.remove)
            stack.enter_context(self._replaced())
            try:
                yield
            finally:
                self._forget()
                self._latest = None

    def measure(self) -> str | None:
        """Run two small texts both ways, in the modes that modules are in.

        Those of a stack that reads an encoder read the states of its texts.

        Returns why nothing can be reused, as the end of a sentence; None where it can.
        """
        stack = self.stack
        if stack.embed is None or len(set(map(id, stack.layers))) < len(stack.layers):
            return f"the {stack.name} reads no tokens, or has the same block twice"
        source = None if self.upstream is None else self.upstream.example
        inputs = self._texts(source)
        rows = Rows((b"long", b"short"), (LONG, SHORT))
        try:
            with torch.no_grad(), self._replaced(), self.hooks.state.nothing_serves():
                self.store = first = _Dictionary()
                self.example = self._run(inputs, rows)
                self.store = second = _Dictionary()
                self._run(inputs, rows)
                if not all(self._close(first[key], second[key]) for key in first):
                    return RANDOM
                if (reason := self._read_forms()) is not None:
                    return reason
                self.width, self.dtype = first[b"long"].shape[-1], first[b"long"].dtype
                self.store = first
                short = {name: value[1:, :SHORT] for name, value in inputs.items()}
                if source is not None:
                    short["encoder_hidden_states"] = source[1:]
                with evaluating(stack.module):
                    whole = self._run(short, None)
                    reused = self._run(short, Rows((b"short",), (SHORT,)))
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):
            return f"blocks of {type(stack.module).__name__} cannot be skipped"
        finally:
            self._forget()
            self.store = _Dictionary()
        if not self._close(whole, reused):
            return f"what {type(stack.module).__name__} computes depends on more than that"
        return None

    def _texts(self, source: Tensor | None) -> dict[str, Tensor]:
        """Two texts, the second one shorter than the first."""
        stack = self.stack
        ids = torch.arange(2, 2 + 2 * LONG, device=stack.device) % max(stack.vocabulary, 1)
        mask = torch.ones(2, LONG, dtype=torch.long, device=stack.device)
        mask[1, SHORT:] = 0
        inputs = {"input_ids": ids.view(2, LONG), "attention_mask": mask}
        return inputs if source is None else {**inputs, "encoder_hidden_states": source}

    def _run(self, inputs: dict[str, Any], rows: Rows | None) -> Tensor:
        """The last states of a pass without hooks on the stack."""
        if self.stack.takes("use_cache"):
            inputs = {**inputs, "use_cache": False}
        try:
            self._begin(rows, inputs["input_ids"].shape[1])
            states = last_state(self.stack.module.forward(**inputs))
            self._keep()
            return states
        finally:
            self._forget()

    def _close(self, one: Tensor, other: Tensor) -> bool:
        """Whether states are equal but for rounding."""
        one, other = one.float(), other.float()
        bound = CLOSE.get(self.stack.dtype, NEAR) * one.abs().max()
        return bool((one - other).abs().max() <= bound)

    # ------------------------------------------------------------------------ the stack's hooks

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look up the rows of the pass that begins, with what other hooks made of its inputs."""
        self._forget()
        if torch.compiler.is_compiling() or is_reentrant(self.stack):
            return
        inputs = by_name(self.stack, args, kwargs)
        rows = self._rows(inputs)
        if rows is not None:
            self._begin(rows, inputs["input_ids"].shape[1])

    def _begin(self, rows: Rows | None, length: int) -> None:
        self._pass.rows = rows
        if rows is None:
            return
        states = [self.store.get(key) for key in rows.keys]
        known = [entry for entry in states if entry is not None]
        self.passes += len(states)
        if len(known) < len(states):
            self._pass.computed = {}
            return
        self.skipped += len(states)
        padded = known[0].new_zeros(len(known), length, known[0].shape[-1])
        for row, entry in zip(padded, known, strict=True):
            row[: len(entry)] = entry
        parts = padded.chunk(len(self.numbers), -1)
        self._pass.kept = dict(zip(self.numbers, parts, strict=True))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Keep what was computed; an output of None belongs to a pass that failed."""
        rows = self._pass.rows
        if rows is not None and output is not None:
            self._keep()
            if not self.stack.causal:
                self._latest = last_state(output).detach(), rows
        self._forget()

    def _keep(self) -> None:
        rows, computed = self._pass.rows, self._pass.computed
        if rows is None or computed is None or computed.keys() < set(self.numbers):
            return
        states = torch.cat([computed[number] for number in self.numbers], -1).cpu()
        if states.dim() != 3 or len(states) != len(rows.keys):
            return
        for key, length, entry in zip(rows.keys, rows.lengths, states, strict=True):
            if self.store.get(key) is None:
                self.store.put(key, entry[:length].clone())

    def _forget(self) -> None:
        current = self._pass
        current.rows = current.kept = current.computed = current.others = None

    # -------------------------------------------------------------------------------- the blocks

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        """Inside, the blocks ask first whether they have to run."""
        blocks = self.stack.layers[: self.layers]
        before = [vars(block).get("forward") for block in blocks]  # others replace it as well
        try:
            for number, block in enumerate(blocks):
                block.forward = self._forward(number, block.forward)
            yield
        finally:
            for block, forward in zip(blocks, before, strict=True):
                vars(block).pop("forward", None)
                if forward is not None:
                    block.forward = forward

    def _forward(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The forward of a block."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return forward(*args, **kwargs)
            current = self._pass
            if current.kept is None:
                output = forward(*args, **kwargs)
                if current.computed is not None:
                    self._note(number, output, current.computed)
                return output
            hidden = first_input(args, kwargs)
            kept = current.kept.get(number)
            states = hidden if kept is None else kept.to(hidden.device, non_blocking=True)
            form = self._forms[number]
            if form is None:
                return states
            if number == 0 and self._hands_on:
                form = current.others = forward(*args, **kwargs)[1:]
            return states, *(form if current.others is None else current.others)

        return run

    def _read_forms(self) -> str | None:
        """Look at what blocks return besides states; returns why they cannot be skipped, if so."""
        name = type(self.stack.module).__name__
        if self._forms.keys() != set(range(self.layers)):
            return f"not every block of {name} runs in a pass"
        sizes = {None if form is None else len(form) for form in self._forms.values()}
        more = [number for number, form in self._forms.items() if any(map(_is_tensor, form or ()))]
        self._hands_on = 0 in more
        if len(sizes) > 1 or (more and not self._hands_on):
            return f"blocks of {name} return different things"
        return None

    def _note(self, number: int, output: Any, computed: dict[int, Tensor]) -> None:
        """Note what a block computed, and in which form it returns that."""
        form = output[1:] if isinstance(output, tuple) else None
        states = output if form is None else output[0]
        if number not in self._forms:
            self._forms[number] = form
        if number in self.numbers:
            computed[number] = states.detach()

    # ---------------------------------------------------------------------------------- the rows

    def _rows(self, inputs: Mapping[str, Any]) -> Rows | None:
        """The rows of a pass; None where blocks do more than to compute states of tokens."""
        ids, config = inputs.get("input_ids"), self.stack.config
        if ids is None or ids.dim() != 2 or config.output_attentions or config.output_hidden_states:
            return None
        if self.stack.causal and self.stack.takes("use_cache") and inputs.get("use_cache") is None:
            return None  # a cache would be made
        given = {name for name, value in inputs.items() if value is not None and value is not False}
        if not given <= {*OF_TOKENS, *WITHOUT_EFFECT}:
            return None
        tensors = {name: inputs[name] for name in OF_TOKENS if name in given}
        if any(value.dim() != 2 or value.shape[1] != ids.shape[1] for value in tensors.values()):
            return None
        sources: Sequence[bytes] = [b""] * len(ids)
        if inputs.get("encoder_hidden_states") is not None:
            if (found := self._sources(inputs)) is None:
                return None
            sources = found
        columns = torch.stack([value.long().expand_as(ids) for value in tensors.values()], 1).cpu()
        padding = self._padding(columns, list(tensors))
        places = torch.arange(1, ids.shape[1] + 1)
        lengths = torch.where(padding, 0, places).amax(1).clamp(min=1).tolist()
        narrow = torch.is_autocast_enabled(ids.device.type)
        header = " ".join((*tensors, str(narrow))).encode()
        keys = tuple(
            _digest(header, source, row[:, :length].contiguous().numpy().tobytes())
            for source, row, length in zip(sources, columns, lengths, strict=True)
        )
        return Rows(keys, tuple(lengths))

    def _padding(self, columns: Tensor, names: list[str]) -> Tensor:
        """Where there is padding, `[B, T]`. columns: the inputs of these names, `[B, n, T]`.

        A decoder that is given no mask sees nothing behind a position, so what it is padded with
        is known by its token.
        """
        if "attention_mask" in names:
            return columns[:, names.index("attention_mask")] == 0
        ids = columns[:, names.index("input_ids")]
        pad = self.stack.config.get_text_config().pad_token_id
        if not self.stack.causal or pad is None:
            return torch.zeros_like(ids, dtype=torch.bool)
        return ids == pad

    def _sources(self, inputs: Mapping[str, Any]) -> list[bytes] | None:
        """A key for each row of the encoder; None where these are not the states of its last pass.

        They are the same memory: ports may have cut columns off, or detached them.
        """
        states, mask = inputs["encoder_hidden_states"], inputs.get("encoder_attention_mask")
        latest = None if self.upstream is None else self.upstream._latest
        if latest is None or (mask is not None and mask.dim() != 2):
            return None
        same = latest[0].untyped_storage().data_ptr() == states.untyped_storage().data_ptr()
        offset = latest[0].storage_offset() == states.storage_offset()
        if not (same and offset and latest[0].shape[:2] == states.shape[:2]):
            return None
        if mask is None:
            return list(latest[1].keys)
        seen = mask.long().cpu()
        return [
            _digest(key, row[:length].numpy().tobytes())
            for key, row, length in zip(latest[1].keys, seen, latest[1].lengths, strict=True)
        ]


LONG, SHORT = 5, 3
"""How many tokens the two texts have by which a stack is measured."""

RANDOM = "the base draws random numbers in training mode"
"""Why nothing can be reused, where dropout is on."""


def reusable(model: nn.Module) -> list[StackReuse]:
    """The stacks of a base that begin with blocks on which no piece of any attached inlay acts.

    They are not measured yet.
    """
    container = container_of(model)
    if container is None:
        return []
    pieces = [container.pieces(name) for name in container.sets]
    stacks: list[StackReuse] = []
    for stack, layers in untouched_layers(container.chart, pieces):
        upstream = stacks[0] if stack.reads_encoder and stacks else None
        if not stack.reads_encoder or upstream is not None:
            stacks.append(StackReuse(container.stack(stack.name), layers, upstream))
    return stacks


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
