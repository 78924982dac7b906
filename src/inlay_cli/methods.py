"""inlay methods: what there is to set in, and what one method does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from inlay_cli import names
from inlay_cli.console import busy, out
from inlay_cli.shared import examples, table

if TYPE_CHECKING:
    from inlay_cli.catalogue import Entry


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog=examples(
            ("inlay methods", "all of them"),
            ("inlay methods LoRA", "one: what it computes, its fields, how to use it"),
        )
    )(methods)


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="METHOD",
            help="Teach this one.",
            autocompletion=names.method_names,
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the methods, or teach one."""
    with busy("reading the methods"):
        from inlay_cli.catalogue import catalogue, entry

        entries = catalogue() if name is None else (entry(name),)
    if name is None:
        _list(entries)
    else:
        _teach(entries[0])


def _list(entries: tuple[Entry, ...]) -> None:
    from rich.markup import escape

    shown = table()
    shown.add_column("method", style="bold cyan", no_wrap=True)
    shown.add_column("what it computes")
    shown.add_column("paper", style="dim")
    shown.add_column("merges", justify="center")
    shown.add_column("starts as\nthe base", justify="center")
    for one in entries:
        told = map(escape, (one.name, one.equation, one.paper))
        shown.add_row(*told, _mark(one.merges), _mark(one.identity))
    out().print(shown)
    out().print("Methods add: LoRA(rank=8) + Prefix(length=10). One of them: inlay methods LoRA")


def _mark(value: bool | None) -> str:
    return {True: "[green]yes", False: "[dim]no", None: "[dim]–"}[value]


def _teach(one: Entry) -> None:
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    console = out()

    def inset(text: str) -> None:
        console.print(Padding(text, (0, 0, 0, 2), expand=False))

    console.print(f"[bold cyan]{one.name}[/]  [dim]{escape(one.line)}[/]")
    for paragraph in one.about.split("\n\n"):
        console.print()
        inset(escape(" ".join(paragraph.split())))
    shown = table()
    shown.add_column("field", style="bold", no_wrap=True)
    shown.add_column("default", overflow="fold", max_width=34)
    shown.add_column("meaning")
    shown.add_column("where the default comes from", style="dim")
    for field in one.fields:
        shown.add_row(field.name, *map(escape, (field.default, field.about, field.source)))
    rate, source = one.rate
    shown.add_row("learning rate", f"{rate:g}", "see training.lr", escape(source))
    console.print(shown)
    facts = Table.grid(padding=(0, 2))
    facts.add_row("  way in", one.port or "none on the models tried")
    facts.add_row("  folds into weights", _mark(one.merges))
    facts.add_row("  starts as the base", _mark(one.identity))
    console.print(facts)
    console.print()
    spec = escape(f"{one.name}({_first(one)})")
    console.print("  [dim]in Python[/]", f"  inlay.attach(model, {spec})", soft_wrap=True)
    console.print(
        "  [dim]in a shell[/]", f' inlay train recipe.yaml --method "{spec}"', soft_wrap=True
    )


def _first(one: Entry) -> str:
    """The first field with its default, to show how fields are written."""
    field = next((f for f in one.fields if f.name != "at"), None)
    return "" if field is None else f"{field.name}={field.default}"
