"""Ctrl-C during training: the first lets the step end, the second stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class SignalHandler:
    """In its `with` block the first Ctrl-C sets `stop_requested`; the second raises.

    In a thread other than the main one it changes nothing: signals never arrive there.
    """

    def __init__(self) -> None:
        self.stop_requested = False
        self._previous_handler: Any = None
        self._in_main_thread = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> SignalHandler:
        if self._in_main_thread:
            self._previous_handler = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._in_main_thread:
            signal.signal(signal.SIGINT, self._previous_handler or signal.SIG_DFL)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
