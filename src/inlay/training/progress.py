"""What a run shows while it goes on: a bar in a terminal, a plain line now and then in a pipe."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

EVERY = 30.0
"""Seconds between plain lines."""

SMOOTH = 0.95
"""How much of the shown loss is from before."""


class Shown:
    """The progress of one run on one console; rich decides whether that is a terminal.

    done: the share of the run that was over before. The bar is gone when the run is over; what
    `say` printed stays.
    """

    def __init__(self, console: Console, done: float):
        self.console = console
        self.loss: float | None = None
        self.tokens = 0
        self.done = self._first = done
        self._start = self._line = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal or console.is_jupyter:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[facts]}"),
                console=console,
                transient=True,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task("training", total=1.0, facts="")

    def __enter__(self) -> Shown:
        if self._bar is not None:
            self._bar.start()
        self._start = self._line = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, number: int, loss: float, tokens: int, done: float) -> None:
        """A step is over; `done` is the share of the run."""
        self.loss = loss if self.loss is None else SMOOTH * self.loss + (1 - SMOOTH) * loss
        self.tokens += tokens
        self.done = done
        if self._bar is not None:
            self._bar.update(
                self._task, completed=done, description=f"step {number}", facts=self._facts()
            )
        elif time.monotonic() - self._line > EVERY:
            self._line = time.monotonic()
            self.say(f"step {number}  {done:.0%}  {self._facts()}")

    def say(self, text: str) -> None:
        """Print one line that stays."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _facts(self) -> str:
        seconds = time.monotonic() - self._start
        rate = self.tokens / max(seconds, 1e-9)
        facts = f"loss {self.loss:.4f}  {rate:,.0f} tokens/s"
        if self.done > self._first:
            left = seconds * (1 - self.done) / (self.done - self._first)
            facts += f"  {clock(left)} left"
        return facts


def clock(seconds: float) -> str:
    """Seconds as `1:02` or `3:04:05`."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
