"""Where the commands write: results to stdout, everything else to stderr, escapes to terminals."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console

WIDE = 160
"""Columns of a table that goes into a pipe or a file."""


def out() -> Console:
    """For what was asked for."""
    return _console(sys.stdout)


def err() -> Console:
    """For progress, remarks and errors."""
    return _console(sys.stderr)


def _console(file: TextIO) -> Console:
    terminal = file.isatty()
    return Console(
        file=file,
        width=None if terminal or "COLUMNS" in os.environ else WIDE,
        color_system="auto" if terminal and not os.environ.get("NO_COLOR") else None,
        highlight=False,
        emoji=False,
    )


def fail(message: str) -> None:
    """One line about what went wrong."""
    line = " ".join(message.split())
    err().print("error:", style="bold red", end=" ", soft_wrap=True)
    err().print(line, markup=False, soft_wrap=True)


@contextmanager
def busy(what: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr that something takes time; yields what replaces the line shown.

    In a terminal one line with a spinner, which is gone at the end; in a pipe a plain line for
    every new step.
    """
    console = err()
    if not console.is_terminal:
        yield _line
        return
    with console.status(what, spinner="dots") as status:
        yield lambda text: status.update(text.replace("[", r"\["))


def _line(text: str) -> None:
    err().print(text, markup=False, soft_wrap=True)
