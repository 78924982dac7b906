"""The report of `inlay inspect` as one page: nothing in it is fetched from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from inlay_cli import report as reports
from inlay_cli.report import Report, Second

if TYPE_CHECKING:
    from inlay.inspect import (
        AttentionShare,
        MatchedPrompts,
        NearestTokens,
        Neighbours,
        PrefixSimilarity,
    )

CELL, LEFT, TOP, RIGHT = 18, 34, 20, 54
"""Pixels: the side of a square, and what is left free around the squares of a map."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #667; --line: #d5d9de; --map: #0b57a4;
        --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9aa3ad; --line: #3a4149; --map: #6db3ff; --paper: #14171a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2.2rem; }
p { margin: .4rem 0; } .soft, small { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line);
         vertical-align: top; }
th { font-weight: 600; } .n { text-align: right; font-variant-numeric: tabular-nums; }
code { font-family: ui-monospace, monospace; }
td code + small { margin-right: .7rem; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
svg .square { fill: var(--map); } svg .frame { fill: none; stroke: var(--line); }
"""


def page(report: Report) -> str:
    """The report as HTML."""
    second = report.second
    parts = [
        f"<h1>{escape(report.file)}</h1>",
        _p(f"<code>{escape(report.method)}</code> on {escape(report.base)}"),
        *(part for one in report.prompts for part in _prompt(report, one)),
        *(part for one in report.shares for part in _map(one, report.measured)),
    ]
    if second is not None:
        parts += _second(report, second)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(report.file)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _p(html: str) -> str:
    return f"<p>{html}</p>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int]) -> str:
    """A table of cells that are HTML already; `numbers` are the columns of numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = (' class="n"' if n in numbers else "" for n in range(len(cells)))
        made = (f"<{tag}{k}>{cell}</{tag}>" for k, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    return f'<div class="wide"><table>\n{line("th", head)}\n{body}\n</table></div>'


def _prompt(report: Report, one: Neighbours) -> list[str]:
    rows = [
        [
            str(number),
            f"{float(vector.norm()):.3g}",
            _tokens(report, one.cosine, number),
            _tokens(report, one.distance, number),
        ]
        for number, vector in enumerate(one.vectors)
    ]
    head = ["position", "norm", "by cosine", "by distance"]
    parts = [
        f"<h2>The tokens nearest to every position of {escape(one.place)}</h2>",
        _table(head, rows, (0, 1)),
        *(_p(escape(line)) for line in reports.lies(one)),
    ]
    if one.shared:
        shared = [
            [f"<code>{escape(report.token(token))}</code>", ", ".join(map(str, where))]
            for token, where in one.shared.items()
        ]
        parts.append(_table(["token", "near positions"], shared, ()))
    if one.ranks:
        k = one.cosine.ids.shape[1]
        names = ["word", "best rank", "at position", "cosine", f"among the {k} nearest of"]
        words = [[*map(escape, row)] for row in reports.ranked(one)]
        parts += [
            f"<h2>Words among all tokens, by cosine to a position of {escape(one.place)}</h2>",
            _table(names, words, (1, 2, 3)),
        ]
    return parts


def _tokens(report: Report, near: NearestTokens, position: int) -> str:
    pairs = zip(near.ids[position].tolist(), near.values[position].tolist(), strict=True)
    return " ".join(
        f"<code>{escape(report.token(token))}</code> <small>{reports.close(value)}</small>"
        for token, value in pairs
    )


def _map(share: AttentionShare, measured: str) -> list[str]:
    said = f"{reports.summary(share)}, over {measured}."
    return [f"<h2>{escape(reports.title(share))}</h2>", _p(escape(said)), heat(share)]


def heat(share: AttentionShare) -> str:
    """A map as SVG: one square a head, layers from above, the fullest has the most."""
    layers, heads = share.shares.shape
    most = float(share.shares.max()) or 1.0
    width, height = LEFT + heads * CELL + RIGHT, TOP + layers * CELL + 2
    drawn = [f'<text x="{LEFT}" y="{TOP - 7}">heads 0–{heads - 1}</text>']
    drawn.append(f'<text x="{LEFT + heads * CELL + 8}" y="{TOP - 7}">mean</text>')
    for y, (layer, row) in enumerate(zip(share.layers, share.shares.tolist(), strict=True)):
        middle = TOP + y * CELL + CELL * 0.7
        drawn.append(f'<text x="{LEFT - 8}" y="{middle:g}" text-anchor="end">{layer}</text>')
        for x, value in enumerate(row):
            drawn.append(
                f'<rect class="square" x="{LEFT + x * CELL}" y="{TOP + y * CELL}" '
                f'width="{CELL - 1}" height="{CELL - 1}" fill-opacity="{value / most:.3f}">'
                f"<title>layer {layer}, head {x}: {reports.percent(value)}</title></rect>"
            )
        mean = reports.percent(sum(row) / len(row))
        drawn.append(f'<text x="{LEFT + heads * CELL + 8}" y="{middle:g}">{mean}</text>')
    frame = (
        f'<rect class="frame" x="{LEFT - 1}" y="{TOP - 1}" width="{heads * CELL + 1}" '
        f'height="{layers * CELL + 1}"/>'
    )
    label = escape(f"{reports.title(share)}: {reports.summary(share)}")
    svg = (
        f'<svg role="img" aria-label="{label}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{frame}{"".join(drawn)}</svg>'
    )
    key = f"The fullest square is {reports.percent(float(share.shares.max()))}; a row is a layer."
    return f'<div class="wide">{svg}</div><p class="soft">{key}</p>'


def _second(report: Report, second: Second) -> list[str]:
    method = f"<code>{escape(second.method)}</code>"
    return [
        f"<h2>Beside it: {escape(second.file)}</h2>",
        _p(method),
        *(_p(escape(line)) for line in reports.agreement(second, report.shares)),
        *(_matched(one) for one in second.prompts),
        *(_alike(one) for one in second.prefixes),
        *(part for one in second.shares for part in _map(one, report.measured)),
    ]


def _matched(one: MatchedPrompts) -> str:
    rows = [
        [str(i), str(j), f"{cosine:.3f}", reports.percent(overlap)]
        for (i, j), cosine, overlap in zip(one.pairs, one.cosines, one.overlaps, strict=True)
    ]
    names = ["here", "there", "cosine", "nearest tokens in common"]
    return _table(names, rows, (0, 1, 2, 3))


def _alike(one: PrefixSimilarity) -> str:
    rows = [
        [str(layer), f"{float(k.mean()):.3f}", f"{float(v.mean()):.3f}"]
        for layer, k, v in zip(one.layers, one.keys, one.values, strict=True)
    ]
    return _p(escape(one.attention)) + _table(["layer", "keys", "values"], rows, (0, 1, 2))
