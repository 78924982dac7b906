"""What is shown while something goes on: bars in a terminal, plain lines now and then in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

SOON = 2.0
"""Seconds before the first plain line."""

EVERY = 30.0
"""Seconds between plain lines."""

SMOOTH = 0.95
"""How much of the shown loss is from before."""


class Shown:
    """Progress on one console; rich decides whether that is a terminal.

    done: the share of a training run that was over before; None where nothing is trained. The bars
    are gone at the end; what `say` printed stays.
    """

    def __init__(self, console: Console, done: float | None = None):
        self.console = console
        self.loss: float | None = None
        self.tokens = 0
        self.done = self._first = done or 0.0
        self._bars: Progress | None = None
        self._training: TaskID | None = None
        if (console.is_terminal or console.is_jupyter) and not console.quiet:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[facts]}", markup=False),
                console=console,
                transient=True,
                refresh_per_second=4,
            )
            if done is not None:
                self._training = self._bars.add_task("training", total=1.0, facts="")
        self._begin()

    def _begin(self) -> None:
        self._start = time.monotonic()
        self._next = self._start + SOON

    def __enter__(self) -> Shown:
        if self._bars is not None:
            self._bars.start()
        self._begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def step(self, number: int, loss: float, tokens: int, done: float) -> None:
        """A step is over; `done` is the share of the run."""
        self.loss = loss if self.loss is None else SMOOTH * self.loss + (1 - SMOOTH) * loss
        self.tokens += tokens
        self.done = done
        if self._bars is not None and self._training is not None:
            self._bars.update(
                self._training, completed=done, description=f"step {number}", facts=self._facts()
            )
        elif self._due():
            self.say(f"step {number}  {done:.0%}  {self._facts()}")

    @contextmanager
    def counting(self, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Show `what` as long as it goes on.

        total: the rows it is about. What this yields is told how many more of them are over. None
        where it cannot be known: then only a terminal shows it.
        """
        bars, begun, over = self._bars, time.monotonic(), 0
        bar = None if bars is None else bars.add_task(what, total=total, facts="")

        def advance(rows: int) -> None:
            nonlocal over
            assert total is not None
            over = min(total, over + rows)
            left = (time.monotonic() - begun) * (total - over) / max(1, over)
            facts = f"{over:,} of {total:,} rows  {clock(left)} left"
            if bars is not None and bar is not None:
                bars.update(bar, completed=over, facts=facts)
            elif over < total and self._due():
                self.say(f"{what}  {over / total:.0%}  {facts}")

        try:
            yield advance
        finally:
            if bars is not None and bar is not None:
                bars.remove_task(bar)

    def say(self, text: str) -> None:
        """Print one line that stays."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _due(self) -> bool:
        """Whether it is time for a plain line; the caller then says one."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + EVERY
        return True

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
