"""Ctrl-C during training: the first is noted, so that a step ends whole; the second is obeyed."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Inside a `with`, the first Ctrl-C sets `noted`; a second raises KeyboardInterrupt at once.

    In a thread other than the main one nothing is changed: signals never arrive there.
    """

    def __init__(self) -> None:
        self.noted = False
        self._before: Any = None
        self._here = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Interrupts:
        if self._here:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._here:
            signal.signal(signal.SIGINT, self._before or signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted:
            raise KeyboardInterrupt
        self.noted = True
