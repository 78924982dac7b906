"""Where the commands write: results to stdout, the rest to stderr, colours only to terminals."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 160
"""Columns of a table that is written into a pipe or a file."""


def out() -> Console:
    """The console for results."""
    return _console(sys.stdout)


def err() -> Console:
    """The console for progress, remarks and errors."""
    return _console(sys.stderr)


def _console(file: TextIO) -> Console:
    terminal = file.isatty()
    return Console(
        file=file,
        width=None if terminal or "COLUMNS" in os.environ else PIPE_WIDTH,
        color_system="auto" if terminal and not os.environ.get("NO_COLOR") else None,
        highlight=False,
        emoji=False,
    )


def table(title: str | None = None) -> Table:
    """An empty table in the style of all commands, at least as wide as its title."""
    width = None if title is None else len(title) + 2
    return Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, min_width=width
    )


def write(line: str, console: Console | None = None) -> None:
    """Print one line as it is, without markup and without breaking it.

    console: stdout's by default.
    """
    (console or out()).print(line, markup=False, soft_wrap=True)


def fail(message: str) -> None:
    """Print an error message on one line."""
    console = err()
    console.print("error:", style="bold red", end=" ", soft_wrap=True)
    write(" ".join(message.split()), console)


@contextmanager
def busy(step: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr that something takes time; yields a function that shows the next step.

    In a terminal this is one line with a spinner, erased at the end; in a pipe it is a plain line
    for every step after the first.
    """
    console = err()
    if not console.is_terminal:
        yield lambda line: write(line, console)
        return
    with console.status(step, spinner="dots") as status:
        yield lambda line: status.update(line.replace("[", r"\["))
