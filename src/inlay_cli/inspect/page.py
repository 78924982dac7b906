"""The report as one HTML page, which loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from inlay_cli.inspect import report as reports
from inlay_cli.inspect.heat import heat_map, scale
from inlay_cli.inspect.readings import maps, rounded
from inlay_cli.inspect.report import VIRTUAL_SIGN, Comparison, Report

if TYPE_CHECKING:
    from inlay.inspect import (
        AttentionShare,
        MatchedPrompts,
        NearestTokens,
        Neighbours,
        PrefixSimilarity,
    )

MOST_TEXTS = 50
"""How many texts a page shows."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #667; --line: #d5d9de; --map: #0b57a4;
        --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9aa3ad; --line: #3a4149; --map: #6db3ff; --paper: #14171a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2.2rem; }
h3 { font-size: .95rem; font-weight: 600; margin-top: 1.4rem; }
p { margin: .4rem 0; } .soft, small { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line);
         vertical-align: top; }
th { font-weight: 600; } .n { text-align: right; font-variant-numeric: tabular-nums; }
code { font-family: ui-monospace, monospace; }
td code + small { margin-right: .7rem; }
li { white-space: pre-wrap; margin: .3rem 0; }
.step { white-space: nowrap; margin-right: .6rem; } .step svg { vertical-align: -.25rem; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
svg text.axis { font-weight: 600; }
svg .square { fill: var(--map); } svg .frame { fill: none; stroke: var(--line); }
"""


def page(report: Report) -> str:
    """The report as HTML."""
    parts = [
        f"<h1>{escape(report.file)}</h1>",
        _p(f"<code>{escape(report.method)}</code> on {escape(report.base)}"),
        *(part for prompt in report.prompts for part in _prompt(report, prompt)),
        *(part for share in report.shares for part in _map(share, report.measured)),
        *_readings(report),
        *(_texts(report) if report.shares or report.readings else []),
    ]
    if report.comparison is not None:
        parts += _comparison(report, report.comparison)
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
    """A table. Cells are HTML; numbers: which columns hold numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        classes = (' class="n"' if n in numbers else "" for n in range(len(cells)))
        html = (f"<{tag}{c}>{cell}</{tag}>" for c, cell in zip(classes, cells, strict=True))
        return f"<tr>{''.join(html)}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    return f'<div class="wide"><table>\n{line("th", head)}\n{body}\n</table></div>'


def _prompt(report: Report, prompt: Neighbours) -> list[str]:
    rows = [
        [
            str(number),
            f"{float(vector.norm()):.3g}",
            _tokens(report, prompt.cosine, number),
            _tokens(report, prompt.distance, number),
        ]
        for number, vector in enumerate(prompt.vectors)
    ]
    head = ["position", "norm", "by cosine", "by distance"]
    parts = [
        f"<h2>Nearest tokens of every position of {escape(prompt.place)}</h2>",
        _table(head, rows, (0, 1)),
        *(_p(escape(line)) for line in reports.closeness(prompt)),
    ]
    if prompt.shared:
        shared = [
            [f"<code>{escape(report.token(token))}</code>", ", ".join(map(str, positions))]
            for token, positions in prompt.shared.items()
        ]
        parts.append(_table(["token", "near positions"], shared, ()))
    if prompt.ranks:
        k = prompt.cosine.ids.shape[1]
        head = ["word", "best rank", "at position", "cosine", f"among the {k} nearest of"]
        words = [[*map(escape, cells)] for cells in reports.word_ranks(prompt)]
        place = escape(prompt.place)
        parts += [
            f"<h2>Rank of words among all tokens, by cosine to a position of {place}</h2>",
            _table(head, words, (1, 2, 3)),
        ]
    return parts


def _tokens(report: Report, near: NearestTokens, position: int) -> str:
    pairs = zip(near.ids[position].tolist(), near.values[position].tolist(), strict=True)
    return " ".join(
        f"<code>{escape(report.token(token))}</code> <small>{reports.short(value)}</small>"
        for token, value in pairs
    )


def _map(share: AttentionShare, measured: str) -> list[str]:
    text = f"{reports.summary(share)}, over {measured}."
    return [f"<h2>{escape(reports.title(share))}</h2>", _p(escape(text)), svg_map(share)]


def svg_map(share: AttentionShare) -> str:
    """An attention map as SVG: a column for each head, a line for each layer from the first on."""
    values = share.shares.tolist()
    svg = heat_map(
        values,
        [str(layer) for layer in share.layers],
        [str(head) for head in range(share.shares.shape[1])],
        axes=("layer", "head"),
        label=f"{reports.title(share)}: {reports.summary(share)}",
        show=reports.percent,
        means=True,
    )
    legend = (
        "Share of a head's attention that falls on it: "
        f"{scale(values, reports.percent)}. A line is a layer, a column one of its heads."
    )
    return f'<div class="wide">{svg}</div><p class="soft">{legend}</p>'


def _readings(report: Report) -> list[str]:
    """What pieces decide: a map by layer, and where texts differ one of each column by text."""
    parts: list[str] = []
    for shown in maps(report.readings):
        values = shown.mean.tolist()
        parts += [
            f"<h2>{escape(shown.title)}</h2>",
            _p(escape(f"Mean over {report.measured}.")),
            _value_map(values, shown.layers, shown.columns, ("layer", shown.axis), shown.title),
        ]
        if not shown.depends:
            parts.append(_p("It is the same for every text."))
            continue
        texts = [str(number + 1) for number in range(min(shown.values.shape[2], MOST_TEXTS))]
        for number, column in enumerate(shown.columns):
            title = f"{shown.title}, of {column} by text"
            by_text = shown.values[:, number, : len(texts)].tolist()
            parts += [
                f"<h3>{escape(title)}</h3>",
                _value_map(by_text, shown.layers, texts, ("layer", "text"), title),
            ]
    return parts


def _value_map(
    values: list[list[float]],
    lines: Sequence[str],
    columns: Sequence[str],
    axes: tuple[str, str],
    label: str,
) -> str:
    svg = heat_map(values, lines, columns, axes=axes, label=label, show=rounded)
    legend = f"{scale(values, rounded)}. A line is a {axes[0]}, a column one {axes[1]}."
    return f'<div class="wide">{svg}</div><p class="soft">{legend}</p>'


def _texts(report: Report) -> list[str]:
    """The texts that it was measured on."""
    shown = report.texts[:MOST_TEXTS]
    parts = [
        "<h2>Texts that this was measured on</h2>",
        "<ol>" + "".join(f"<li>{escape(text)}</li>" for text in shown) + "</ol>",
    ]
    if any(VIRTUAL_SIGN in text for text in shown):
        parts.append(f'<p class="soft">{VIRTUAL_SIGN} is a virtual token of the inlay.</p>')
    if len(report.texts) > len(shown):
        parts.append(f'<p class="soft">and {len(report.texts) - len(shown):,} more</p>')
    return parts


def _comparison(report: Report, comparison: Comparison) -> list[str]:
    return [
        f"<h2>Compared with {escape(comparison.file)}</h2>",
        _p(f"<code>{escape(comparison.method)}</code>"),
        *(_p(escape(line)) for line in reports.agreement(comparison, report.shares)),
        *(_matched(matched) for matched in comparison.prompts),
        *(_prefixes(prefix) for prefix in comparison.prefixes),
        *(part for share in comparison.shares for part in _map(share, report.measured)),
    ]


def _matched(matched: MatchedPrompts) -> str:
    rows = [
        [str(i), str(j), f"{cosine:.3f}", reports.percent(overlap)]
        for (i, j), cosine, overlap in zip(
            matched.pairs, matched.cosines, matched.overlaps, strict=True
        )
    ]
    head = ["first", "second", "cosine", "nearest tokens in common"]
    return _table(head, rows, (0, 1, 2, 3))


def _prefixes(prefix: PrefixSimilarity) -> str:
    rows = [
        [str(layer), f"{float(k.mean()):.3f}", f"{float(v.mean()):.3f}"]
        for layer, k, v in zip(prefix.layers, prefix.keys, prefix.values, strict=True)
    ]
    return _p(escape(prefix.attention)) + _table(["layer", "keys", "values"], rows, (0, 1, 2))
