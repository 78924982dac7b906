"""docs/methods.md, and the table of methods in README.md."""

from __future__ import annotations

from collections.abc import Iterable

from bench.docs.markdown import cell, table
from inlay_cli.catalogue import Entry


def summary(entries: Iterable[Entry]) -> str:
    """A line for every method."""
    head = ["method", "what it computes", "paper", "merges", "starts as the base"]
    rows = [
        [
            f"[`{entry.name}`](docs/methods.md#{entry.name.lower()})",
            cell(entry.equation),
            entry.paper,
            _yes(entry.merges),
            _yes(entry.identity),
        ]
        for entry in entries
    ]
    return table(head, rows)


def page(entries: Iterable[Entry]) -> str:
    """A section for every method."""
    title = "# Methods\n\nGenerated from `src/inlay/methods/` by `make docs`.\n"
    return "\n".join([title, *map(_section, entries)])


def _section(entry: Entry) -> str:
    head = ["field", "default", "meaning", "where the default comes from"]
    rows = [
        [f"`{field.name}`", f"`{cell(field.default)}`", cell(field.about), cell(field.source)]
        for field in entry.fields
    ]
    rate, source = entry.learning_rate
    rows.append(["learning rate", f"`{rate:g}`", "see `training.lr`", cell(source)])
    facts = (
        f"Port: {entry.port or '–'}. Folds into weights: {_yes(entry.merges) or 'no'}. "
        f"Starts as the base: {_yes(entry.identity) or 'no'}."
    )
    return f"## {entry.name}\n\n{entry.line}\n\n{entry.about}\n\n{table(head, rows)}\n{facts}\n"


def _yes(value: bool | None) -> str:
    return "yes" if value else ""
