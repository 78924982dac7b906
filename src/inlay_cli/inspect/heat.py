"""Heat maps as SVG, which names its axes and loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

CELL, LEFT, TOP, RIGHT, BOTTOM = 20, 64, 40, 64, 34
"""Pixels: the side of a square, and the margins around the squares of a map."""

LETTER = 7
"""Pixels: about the width of a letter."""

STEPS = (0, 0.25, 0.5, 0.75, 1)
"""The squares of a map's scale, as parts of its highest value."""


def heat_map(
    values: Sequence[Sequence[float]],
    lines: Sequence[str],
    columns: Sequence[str],
    *,
    axes: tuple[str, str],
    label: str,
    show: Callable[[float], str],
    means: bool = False,
) -> str:
    """A map as SVG: a square for each value, the darker the further it is from zero.

    values: a list for each line; nan leaves a square out. lines, columns: what they are called.
    axes: what a line is, and what a column is. label: for who cannot see it. show: a value as
    text. means: whether the mean of each line stands beside it.
    """
    highest = _highest(values)
    turned = max(map(len, columns), default=0) > 2  # numbers of two digits fit above a square
    top = TOP + (max(map(len, columns)) * LETTER if turned else 0)
    left = LEFT + max(0, max(map(len, lines), default=0) - 3) * LETTER
    bottom, right = top + len(lines) * CELL, left + len(columns) * CELL
    line_axis, column_axis = axes
    middle = left + len(columns) * CELL / 2
    width = max(right + (RIGHT if means else 8), middle + len(column_axis) * LETTER / 2 + 8)
    height = bottom + BOTTOM
    shapes = [
        _text(middle, 14, column_axis, "middle", "axis"),
        _text(14, top + len(lines) * CELL / 2, line_axis, "middle", "axis", turned=True),
    ]
    if means:
        shapes.append(_text(right + 8, top - 8, "mean"))
    for number, name in enumerate(columns):
        x = left + (number + 0.5) * CELL
        if turned:
            shapes.append(_text(x + 4, top - 6, name, turned=True))
        else:
            shapes.append(_text(x, top - 8, name, "middle"))
    for line, (name, row) in enumerate(zip(lines, values, strict=True)):
        y = top + line * CELL
        shapes.append(_text(left - 8, y + CELL * 0.7, name, "end"))
        for column, value in zip(range(len(columns)), row, strict=True):
            if value == value:
                note = f"{line_axis} {name}, {column_axis} {columns[column]}: {show(value)}"
                shapes.append(_square(left + column * CELL, y, abs(value) / highest, note))
        if means:
            shapes.append(_text(right + 8, y + CELL * 0.7, show(sum(row) / len(row))))
    frame = (
        f'<rect class="frame" x="{left - 1}" y="{top - 1}" width="{len(columns) * CELL + 1}" '
        f'height="{len(lines) * CELL + 1}"/>'
    )
    return (
        f'<svg role="img" aria-label="{escape(label)}" width="{width:g}" height="{height}" '
        f'viewBox="0 0 {width:g} {height}">{frame}{"".join(shapes)}</svg>'
    )


def scale(values: Sequence[Sequence[float]], show: Callable[[float], str]) -> str:
    """A square for each step of a map's colours, with its value."""
    highest = _highest(values)
    size = f'width="{CELL - 1}" height="{CELL - 1}"'
    squares = (
        f'<span class="step"><svg {size} aria-hidden="true"><rect class="square step" {size} '
        f'fill-opacity="{step:.3f}"/></svg> {show(step * highest)}</span>'
        for step in STEPS
    )
    return " ".join(squares)


def _highest(values: Sequence[Sequence[float]]) -> float:
    """The value that is furthest from zero, without its sign; 1 where all are zero."""
    return max((abs(v) for row in values for v in row if v == v), default=1.0) or 1.0


def _square(x: float, y: float, opacity: float, note: str) -> str:
    return (
        f'<rect class="square" x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" '
        f'fill-opacity="{opacity:.3f}"><title>{escape(note)}</title></rect>'
    )


def _text(
    x: float, y: float, text: str, anchor: str = "start", style: str = "", turned: bool = False
) -> str:
    """A text in a map; turned: written upwards."""
    kind = f' class="{style}"' if style else ""
    turn = f' transform="rotate(-90 {x:g} {y:g})"' if turned else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{kind}{turn}>{escape(text)}</text>'
