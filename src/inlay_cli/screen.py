"""The report of `inlay inspect` in a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.markup import escape

from inlay_cli import report as reports
from inlay_cli.console import out
from inlay_cli.report import Report, Second
from inlay_cli.shared import table

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from inlay.inspect import AttentionShare, NearestTokens, Neighbours

LEVELS = "·▁▂▃▄▅▆▇█"
"""From nothing to the most there is in a map."""

FEW = 10
"""Shared tokens that are listed; the files list all."""


def show(report: Report) -> None:
    """Draw the report."""
    _say(f"[bold]{escape(report.file)}[/]  {escape(report.method)}")
    for prompt in report.prompts:
        _prompt(report, prompt)
    for share in report.shares:
        _map(share, report.measured)
    if report.second is not None:
        _second(report, report.second)


def _say(line: str) -> None:
    out().print(line, soft_wrap=True)


def _titled(title: str) -> Table:
    """An empty table under a line of its own, which a narrow table would break."""
    _say(f"\n[bold]{escape(title)}[/]")
    return table()


def _prompt(report: Report, one: Neighbours) -> None:
    shown = _titled(f"The tokens nearest to every position of {one.place}")
    shown.add_column("position", justify="right", style="bold cyan")
    shown.add_column("norm", justify="right")
    shown.add_column("by cosine")
    shown.add_column("by distance")
    for number, vector in enumerate(one.vectors):
        cells = [_tokens(report, near, number) for near in (one.cosine, one.distance)]
        shown.add_row(str(number), f"{float(vector.norm()):.3g}", *cells)
    out().print(shown)
    for line in reports.lies(one):
        _say(escape(line))
    shared = [*one.shared.items()]
    for token, where in shared[:FEW]:
        places = ", ".join(map(str, where))
        _say(f"[cyan]{escape(report.token(token))}[/] is near positions {places}")
    if len(shared) > FEW:
        _say(f"[dim]and {len(shared) - FEW} more tokens are near several positions[/]")
    if one.ranks:
        _ranks(one)


def _tokens(report: Report, near: NearestTokens, position: int) -> str:
    pairs = zip(near.ids[position].tolist(), near.values[position].tolist(), strict=True)
    return "  ".join(
        f"{escape(report.token(token))} [dim]{reports.close(value)}[/]" for token, value in pairs
    )


def _ranks(one: Neighbours) -> None:
    k = one.cosine.ids.shape[1]
    shown = _titled(f"Words among all tokens, ordered by cosine to a position of {one.place}")
    shown.add_column("word", style="bold cyan")
    for name in ("best rank", "at position", "cosine"):
        shown.add_column(name, justify="right")
    shown.add_column(f"among the {k} nearest of")
    for row in reports.ranked(one):
        shown.add_row(*map(escape, row))
    out().print(shown)


def _map(share: AttentionShare, measured: str) -> None:
    heads, most = share.shares.shape[1], float(share.shares.max())
    shown = _titled(f"{reports.title(share)} ({measured})")
    shown.add_column("layer", justify="right", style="bold cyan")
    for name in ("mean", "least", "most", "even"):
        shown.add_column(name, justify="right", style="dim" if name == "even" else "")
    shown.add_column(f"{heads} heads", no_wrap=True)
    for layer, row, even in zip(share.layers, share.shares, share.uniform.tolist(), strict=True):
        numbers = [*map(float, (row.mean(), row.min(), row.max())), even]
        shown.add_row(str(layer), *map(reports.percent, numbers), _bars(row, most))
    out().print(shown)
    _say(f"{reports.summary(share)}. █ is {reports.percent(most)}, the most of any head.")


def _bars(row: Tensor, most: float) -> str:
    """One block a head, as high as its share of the most."""
    steps = len(LEVELS) - 1
    levels = [math.ceil(steps * value / most - 0.5) if most else 0 for value in row.tolist()]
    return "".join(f"[{_colour(level / steps)}]{LEVELS[level]}[/]" for level in levels)


def _colour(part: float) -> str:
    return "dim" if part < 0.25 else "cyan" if part < 0.5 else "yellow" if part < 0.75 else "red"


def _second(report: Report, second: Second) -> None:
    _say(f"\n[bold]{escape(second.file)}[/]  {escape(second.method)}  beside it")
    for one in second.prompts:
        shown = _titled(f"Positions of {one.place}, paired by their cosine")
        for name in ("here", "there", "cosine", "nearest tokens in common"):
            shown.add_column(name, justify="right")
        for (i, j), cosine, overlap in zip(one.pairs, one.cosines, one.overlaps, strict=True):
            shown.add_row(str(i), str(j), f"{cosine:.3f}", reports.percent(overlap))
        out().print(shown)
    for alike in second.prefixes:
        shown = _titled(f"Cosine of keys and values at the same position, in {alike.attention}")
        for name in ("layer", "keys", "values"):
            shown.add_column(name, justify="right")
        for layer, k, v in zip(alike.layers, alike.keys, alike.values, strict=True):
            shown.add_row(str(layer), f"{float(k.mean()):.3f}", f"{float(v.mean()):.3f}")
        out().print(shown)
    for share in second.shares:
        _map(share, report.measured)
    for line in reports.agreement(second, report.shares):
        _say(escape(line))
