"""Progress on the console: bars in a terminal, a plain line now and then in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

FIRST_LINE_AFTER = 2.0
"""Seconds before the first plain line."""

LINE_EVERY = 30.0
"""Seconds between plain lines."""

SMOOTHING = 0.95
"""The weight of earlier steps in the displayed loss."""


class ProgressDisplay:
    """Shows progress on a console; rich decides whether that is a terminal.

    The bars disappear at the end of the `with` block; lines that were printed stay.

    Args:
        console: where to show it.
        progress: how much of a training run is done, from 0 to 1; None where nothing is trained.
    """

    def __init__(self, console: Console, progress: float | None = None):
        self.console = console
        self.loss: float | None = None
        self.tokens = 0
        self.progress = self._first_progress = progress or 0.0
        self._bars: Progress | None = None
        self._training_bar: TaskID | None = None
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
            if progress is not None:
                self._training_bar = self._bars.add_task("training", total=1.0, facts="")
        self._start_clock()

    def _start_clock(self) -> None:
        self._start = time.monotonic()
        self._next_line = self._start + FIRST_LINE_AFTER

    def __enter__(self) -> ProgressDisplay:
        if self._bars is not None:
            self._bars.start()
        self._start_clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def step(self, step: int, loss: float, tokens: int, progress: float) -> None:
        """Show that a training step was made.

        Args:
            step: its number.
            loss: of this step.
            tokens: in its batches.
            progress: how much of the run is done, from 0 to 1.
        """
        self.loss = loss if self.loss is None else SMOOTHING * self.loss + (1 - SMOOTHING) * loss
        self.tokens += tokens
        self.progress = progress
        if self._bars is not None and self._training_bar is not None:
            self._bars.update(
                self._training_bar,
                completed=progress,
                description=f"step {step}",
                facts=self._facts(),
            )
        elif self._line_is_due():
            self.print(f"step {step}  {progress:.0%}  {self._facts()}")

    @contextmanager
    def counting(self, label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Show a bar with this label inside the `with` block.

        Args:
            label: what is done.
            total: how many rows there are; None where that is unknown: then only a terminal shows
                the label.

        Yields a function that takes how many more rows are done.
        """
        bars, start, done = self._bars, time.monotonic(), 0
        bar = None if bars is None else bars.add_task(label, total=total, facts="")

        def advance(rows: int) -> None:
            nonlocal done
            assert total is not None
            done = min(total, done + rows)
            remaining = (time.monotonic() - start) * (total - done) / max(1, done)
            facts = f"{done:,} of {total:,} rows  {format_seconds(remaining)} left"
            if bars is not None and bar is not None:
                bars.update(bar, completed=done, facts=facts)
            elif done < total and self._line_is_due():
                self.print(f"{label}  {done / total:.0%}  {facts}")

        try:
            yield advance
        finally:
            if bars is not None and bar is not None:
                bars.remove_task(bar)

    def print(self, text: str) -> None:
        """Print one line that stays."""
        print_line(self.console, text)

    def _line_is_due(self) -> bool:
        """Whether it is time for a plain line, which the caller then prints."""
        now = time.monotonic()
        if now < self._next_line:
            return False
        self._next_line = now + LINE_EVERY
        return True

    def _facts(self) -> str:
        """The loss, the speed and the time left, as text."""
        seconds = time.monotonic() - self._start
        speed = self.tokens / max(seconds, 1e-9)
        facts = f"loss {self.loss:.4f}  {speed:,.0f} tokens/s"
        if self.progress > self._first_progress:
            done = self.progress - self._first_progress
            facts += f"  {format_seconds(seconds * (1 - self.progress) / done)} left"
        return facts


def print_line(console: Console, text: str) -> None:
    """Print one line of plain text."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def format_seconds(seconds: float) -> str:
    """Seconds as `1:02` or `3:04:05`."""
    total = max(0, round(seconds))
    hours, minutes, rest = total // 3600, total // 60 % 60, total % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
