"""The report in a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.markup import escape

from inlay_cli.console import out, table
from inlay_cli.inspect import report as reports
from inlay_cli.inspect.readings import ReadingMap, maps, rounded
from inlay_cli.inspect.report import Comparison, Report

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from inlay.inspect import AttentionShare, NearestTokens, Neighbours

LEVELS = "·▁▂▃▄▅▆▇█"
"""From zero to the largest value of a map."""

MOST_TOKENS = 10
"""Shared tokens that are listed; the page and the JSON file list all."""


MOST_TEXTS = 20
"""Texts that are listed with what is read out of each."""

LONGEST_TEXT = 60
"""How many characters of a text are shown."""


def show(report: Report) -> None:
    """Print the report."""
    _print(f"[bold]{escape(report.file)}[/]  {escape(report.method)}")
    for prompt in report.prompts:
        _show_prompt(report, prompt)
    for share in report.shares:
        _show_map(share, report.measured)
    for shown in maps(report.readings):
        _show_readings(shown, report)
    if report.comparison is not None:
        _show_comparison(report, report.comparison)


def _print(line: str) -> None:
    out().print(line, soft_wrap=True)


def _titled(title: str) -> Table:
    """An empty table below its title, which is a line of its own so that it is not wrapped."""
    _print(f"\n[bold]{escape(title)}[/]")
    return table()


def _show_prompt(report: Report, prompt: Neighbours) -> None:
    rows = _titled(f"Nearest tokens of every position of {prompt.place}")
    rows.add_column("position", justify="right", style="bold cyan")
    rows.add_column("norm", justify="right")
    rows.add_column("by cosine")
    rows.add_column("by distance")
    for number, vector in enumerate(prompt.vectors):
        cells = [_tokens(report, near, number) for near in (prompt.cosine, prompt.distance)]
        rows.add_row(str(number), f"{float(vector.norm()):.3g}", *cells)
    out().print(rows)
    for line in reports.closeness(prompt):
        _print(escape(line))
    shared = list(prompt.shared.items())
    for token, numbers in shared[:MOST_TOKENS]:
        positions = ", ".join(map(str, numbers))
        _print(f"[cyan]{escape(report.token(token))}[/] is near positions {positions}")
    if len(shared) > MOST_TOKENS:
        more = len(shared) - MOST_TOKENS
        _print(f"[dim]and {more} more tokens are near several positions[/]")
    if prompt.ranks:
        _show_ranks(prompt)


def _tokens(report: Report, near: NearestTokens, position: int) -> str:
    pairs = zip(near.ids[position].tolist(), near.values[position].tolist(), strict=True)
    return "  ".join(
        f"{escape(report.token(token))} [dim]{reports.short(value)}[/]" for token, value in pairs
    )


def _show_ranks(prompt: Neighbours) -> None:
    k = prompt.cosine.ids.shape[1]
    rows = _titled(f"Rank of words among all tokens, by cosine to a position of {prompt.place}")
    rows.add_column("word", style="bold cyan")
    for name in ("best rank", "at position", "cosine"):
        rows.add_column(name, justify="right")
    rows.add_column(f"among the {k} nearest of")
    for cells in reports.word_ranks(prompt):
        rows.add_row(*map(escape, cells))
    out().print(rows)


def _show_map(share: AttentionShare, measured: str) -> None:
    heads, highest = share.shares.shape[1], float(share.shares.max())
    rows = _titled(f"{reports.title(share)} ({measured})")
    rows.add_column("layer", justify="right", style="bold cyan")
    for name in ("mean", "lowest", "highest", "equal"):
        rows.add_column(name, justify="right", style="dim" if name == "equal" else "")
    rows.add_column(f"{heads} heads", no_wrap=True)
    for layer, values, even in zip(share.layers, share.shares, share.uniform.tolist(), strict=True):
        numbers = [*map(float, (values.mean(), values.min(), values.max())), even]
        rows.add_row(str(layer), *map(reports.percent, numbers), _bars(values, highest))
    out().print(rows)
    _print(f"{reports.summary(share)}. █ is {reports.percent(highest)}, the highest of all heads.")


def _show_readings(shown: ReadingMap, report: Report) -> None:
    """What pieces decide, by layer, and by text where texts differ."""
    rows = _titled(f"{shown.title} (mean over {report.measured})")
    rows.add_column("layer", justify="right", style="bold cyan")
    for column in shown.columns:
        rows.add_column(escape(column), justify="right")
    for layer, values in zip(shown.layers, shown.mean.tolist(), strict=True):
        rows.add_row(layer, *map(rounded, values))
    means = map(rounded, shown.mean.nanmean(0).tolist())
    rows.add_row("mean", *means, style="dim")
    out().print(rows)
    if not shown.depends:
        _print("It is the same for every text.")
        return
    rows = _titled(f"{shown.title}, by text (mean over layers)")
    rows.add_column("text", justify="right", style="bold cyan")
    for column in shown.columns:
        rows.add_column(escape(column), justify="right")
    rows.add_column("")
    lines = list(zip(report.texts, shown.by_text.tolist(), strict=False))
    for place, (text, values) in enumerate(lines[:MOST_TEXTS], 1):
        beginning = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
        rows.add_row(str(place), *map(rounded, values), escape(" ".join(beginning.split())))
    out().print(rows)
    if len(lines) > MOST_TEXTS:
        _print(f"[dim]and {len(lines) - MOST_TEXTS} more texts; --json has all[/]")


def _bars(values: Tensor, highest: float) -> str:
    """One block for each head, as high as its part of the highest value."""
    steps = len(LEVELS) - 1
    levels = [
        math.ceil(steps * value / highest - 0.5) if highest else 0 for value in values.tolist()
    ]
    return "".join(f"[{_colour(level / steps)}]{LEVELS[level]}[/]" for level in levels)


def _colour(part: float) -> str:
    return "dim" if part < 0.25 else "cyan" if part < 0.5 else "yellow" if part < 0.75 else "red"


def _show_comparison(report: Report, comparison: Comparison) -> None:
    _print(f"\n[bold]{escape(comparison.file)}[/]  {escape(comparison.method)}  compared with it")
    for matched in comparison.prompts:
        rows = _titled(f"Positions of {matched.place}, paired by cosine")
        for name in ("first", "second", "cosine", "nearest tokens in common"):
            rows.add_column(name, justify="right")
        for (i, j), cosine, overlap in zip(
            matched.pairs, matched.cosines, matched.overlaps, strict=True
        ):
            rows.add_row(str(i), str(j), f"{cosine:.3f}", reports.percent(overlap))
        out().print(rows)
    for prefix in comparison.prefixes:
        rows = _titled(f"Cosine of keys and values at the same position, in {prefix.attention}")
        for name in ("layer", "keys", "values"):
            rows.add_column(name, justify="right")
        for layer, k, v in zip(prefix.layers, prefix.keys, prefix.values, strict=True):
            rows.add_row(str(layer), f"{float(k.mean()):.3f}", f"{float(v.mean()):.3f}")
        out().print(rows)
    for share in comparison.shares:
        _show_map(share, report.measured)
    for line in reports.agreement(comparison, report.shares):
        _print(escape(line))
