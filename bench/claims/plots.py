"""How the numbers of all seeds are plotted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

Plot = Callable[[Any, Sequence[dict[str, float]]], None]
"""(matplotlib axes, the numbers of each seed) -> None."""


def bars(**labels: str) -> Plot:
    """A bar for the mean of each number, with every seed as a point; number -> label."""

    def plot(axes: Any, seeds: Sequence[dict[str, float]]) -> None:
        for position, name in enumerate(labels):
            values = [numbers[name] for numbers in seeds]
            axes.bar(position, fmean(values), color="0.8")
            axes.plot([position] * len(values), values, "k.", alpha=0.6)
        axes.set_xticks(range(len(labels)), list(labels.values()))

    return plot


def paired_bars(groups: Sequence[str], y: str, lowest: float = 0.0, **labels: str) -> Plot:
    """Bars side by side for each group, the means of the numbers `prefix_group`; prefix -> label.

    y: the name of the vertical axis. lowest: where it starts; it ends at 1.
    """

    def plot(axes: Any, seeds: Sequence[dict[str, float]]) -> None:
        width = 0.8 / len(labels)
        for number, (prefix, label) in enumerate(labels.items()):
            means = [fmean(numbers[f"{prefix}_{group}"] for numbers in seeds) for group in groups]
            positions = [position + width * number for position in range(len(groups))]
            axes.bar(positions, means, width=width, label=label)
        middle = width * (len(labels) - 1) / 2
        axes.set_xticks([position + middle for position in range(len(groups))], groups)
        axes.set_ylabel(y)
        axes.set_ylim(lowest, 1.0)
        axes.legend()

    return plot


def curves(x: str, at: Sequence[float], logarithmic: bool = False, **labels: str) -> Plot:
    """A curve through the means of the numbers `prefix` + x, a thin line a seed; prefix -> label.

    x: the name of the horizontal axis. at: its values.
    """

    def plot(axes: Any, seeds: Sequence[dict[str, float]]) -> None:
        for number, (prefix, label) in enumerate(labels.items()):
            names = [f"{prefix}{value:g}" for value in at]
            for numbers in seeds:
                axes.plot(at, [numbers[name] for name in names], f"C{number}-", alpha=0.3)
            means = [fmean(numbers[name] for numbers in seeds) for name in names]
            axes.plot(at, means, f"C{number}o-", label=label)
        if logarithmic:
            axes.set_xscale("log")
        axes.set_xticks(at, [f"{value:g}" for value in at])
        axes.set_xlabel(x)
        axes.legend()

    return plot
