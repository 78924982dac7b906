"""The gate of a base: passes go through side by side, and wait while somebody changes the inlays.

Attaching, detaching and merging put hooks on and take them off, or write into weights. A pass of
another thread would then be served in half of its blocks. So whoever changes something holds new
passes back, and waits for those that are under way:

    thread 1   |---- pass ----|            |---- pass ----|
    thread 2        |-------- pass --------|
    thread 3             attach: waits ····|attaches|        a pass that comes meanwhile waits too

A thread is inside from where it enters the base (or one of its stacks) until it leaves it again. A
compiled pass does not count: a graph cannot hold a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread, current_thread
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from inlay.errors import BusyError

PATIENCE = 60.0
"""Seconds that a change waits for the passes of other threads."""


class Gate:
    """Who is inside a base, and who changes it."""

    def __init__(self) -> None:
        self._moved = threading.Condition()
        self._inside: dict[Thread, int] = {}
        self._changing: Thread | None = None

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:  # nobody is inside a copy
        return type(self), ()

    def enter(self, outermost: bool) -> None:
        """Begin a pass of this thread, as soon as no other thread changes the inlays.

        outermost: whether no pass of this thread can be under way; one that was interrupted, and
        never left, is then forgotten.
        """
        thread = current_thread()
        with self._moved:
            while self._changing not in (None, thread) and thread not in self._inside:
                self._moved.wait()
            self._inside[thread] = 1 if outermost else self._inside.get(thread, 0) + 1

    def leave(self) -> None:
        """End a pass of this thread."""
        thread = current_thread()
        with self._moved:
            self._inside[thread] = self._inside.get(thread, 0) - 1
            if self._inside[thread] <= 0:
                del self._inside[thread]
                self._moved.notify_all()

    @contextmanager
    def change(self) -> Iterator[None]:
        """Inside, no other thread is in a pass; this thread may run passes, and change again.

        One thread changes at a time: the caller sees to that. Raises BusyError where a pass of
        another thread does not end within `PATIENCE`.
        """
        thread = current_thread()
        if self._changing is thread:
            yield
            return
        self._changing = thread
        try:
            with self._moved:
                if not self._moved.wait_for(lambda: self._is_free_for(thread), PATIENCE):
                    raise BusyError(
                        f"another thread has been inside a forward pass for {PATIENCE:.0f} s; "
                        "attach, detach and merge when its pass is over"
                    )
            yield
        finally:
            with self._moved:
                self._changing = None
                self._moved.notify_all()

    def _is_free_for(self, thread: Thread) -> bool:
        """Whether no other thread is inside; one that has ended is not."""
        return not any(other is not thread and other.is_alive() for other in self._inside)


class GateHooks:
    """The hooks of one module at which threads enter and leave a base.

    outermost: whether that module is the base itself, which is not inside any other.
    begin: called with the arguments by name when a thread enters the base, and may change them:
    some bases embed tokens before any stack.
    """

    def __init__(
        self,
        module: nn.Module,
        gate: Gate,
        outermost: bool,
        begin: Callable[[dict[str, Any]], None],
    ):
        self.module = module
        self.gate = gate
        self.outermost = outermost
        self.begin = begin
        self._hooks: list[RemovableHandle] = []

    def hook(self) -> None:
        """Put the hooks on, before and after all others of the module."""
        self._hooks = [
            self.module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True),
            self.module.register_forward_hook(self._leave, always_call=True),
        ]

    def unhook(self) -> None:
        """Take the hooks off."""
        for handle in self._hooks:
            handle.remove()

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not torch.compiler.is_compiling():
            self.gate.enter(self.outermost)
        if self.outermost:
            self.begin(kwargs)
        return args, kwargs

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not torch.compiler.is_compiling():
            self.gate.leave()
