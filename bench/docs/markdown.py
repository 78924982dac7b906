"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[str] = ()) -> str:
    """A table that ends with a line break. numbers: the heads of the columns set to the right."""
    right = set(numbers)
    lines = [row(head), "|" + "|".join("---:" if name in right else "---" for name in head) + "|"]
    return "\n".join([*lines, *map(row, rows)]) + "\n"


def row(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def cell(text: str) -> str:
    """A text, escaped for a cell."""
    return text.replace("|", "\\|")
