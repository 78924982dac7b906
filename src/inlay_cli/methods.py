"""inlay methods: list the methods, or explain one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from inlay_cli import names
from inlay_cli.console import busy, out, table
from inlay_cli.shared import examples

if TYPE_CHECKING:
    from inlay_cli.catalogue import Entry


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        rich_help_panel=panel,
        epilog=examples(
            ("inlay methods", "all methods: what each computes, and whether it merges"),
            ("inlay methods LoRA", "one method: its fields, their defaults, how to use it"),
            ("inlay methods diagonal.py:Diagonal", "one of your own"),
        ),
    )(methods)


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="METHOD",
            help="Explain this method; one of your own is written file.py:Name.",
            autocompletion=names.methods,
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the methods, or explain one."""
    with busy("reading the methods"):
        from inlay_cli.catalogue import catalogue, entry

        entries = catalogue() if name is None else (entry(name),)
    if name is None:
        _list(entries)
    else:
        _explain(entries[0], name)


def _list(entries: Sequence[Entry]) -> None:
    rows = table()
    rows.add_column("method", style="bold cyan", no_wrap=True)
    rows.add_column("what it computes")
    rows.add_column("paper", style="dim")
    rows.add_column("merges", justify="center")
    rows.add_column("starts as\nthe base", justify="center")
    for entry in entries:
        texts = map(escape, (entry.name, entry.equation, entry.paper))
        rows.add_row(*texts, _mark(entry.merges), _mark(entry.identity))
    out().print(rows)
    out().print(
        "Methods add up: LoRA(rank=8) + Prefix(length=10). For one of them: inlay methods LoRA"
    )


def _mark(value: bool | None) -> str:
    return {True: "[green]yes", False: "[dim]no", None: "[dim]–"}[value]


def _explain(entry: Entry, name: str) -> None:
    """Show all about one method. name: as it was written, perhaps with its file."""
    console = out()
    console.print(f"[bold cyan]{entry.name}[/]  [dim]{escape(entry.line)}[/]")
    for paragraph in entry.about.split("\n\n"):
        console.print()
        text = escape(" ".join(paragraph.split()))
        console.print(Padding(text, (0, 0, 0, 2), expand=False))
    console.print(_fields(entry))
    facts = Table.grid(padding=(0, 2))
    facts.add_row("  port", entry.port or "–")
    facts.add_row("  folds into weights", _mark(entry.merges))
    facts.add_row("  starts as the base", _mark(entry.identity))
    console.print(facts)
    console.print()
    spec = escape(f"{entry.name}({_example(entry)})")
    calls = [f"inlay.attach(model, {spec})"]
    if entry.prepares:
        calls = [
            f"spec = {spec}",
            "prepared = inlay.training.prepare(model, spec, task, data)",
            "inlay.attach(model, spec, prepared=prepared)",
        ]
    for number, call in enumerate(calls):
        label = " " * 9 if number else "[dim]in Python[/]"
        console.print(f"  {label}", f"  {call}", soft_wrap=True)
    shell = f'inlay train recipe.yaml --method "{escape(f"{name}({_example(entry)})")}"'
    console.print("  [dim]in a shell[/]", f" {shell}", soft_wrap=True)


def _fields(entry: Entry) -> Table:
    rows = table()
    rows.add_column("field", style="bold", no_wrap=True)
    rows.add_column("default", overflow="fold", max_width=34)
    rows.add_column("meaning")
    rows.add_column("where the default comes from", style="dim")
    for field in entry.fields:
        rows.add_row(field.name, *map(escape, (field.default, field.about, field.source)))
    rate, source = entry.learning_rate
    rows.add_row("learning rate", f"{rate:g}", "see training.lr", escape(source))
    return rows


def _example(entry: Entry) -> str:
    """The first field with its default, to show how fields are written."""
    field = next((field for field in entry.fields if field.name != "at"), None)
    return "" if field is None else f"{field.name}={field.default}"
