"""inlay sites: the map of a base, for choosing where pieces go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from inlay_cli.console import out
from inlay_cli.shared import BaseArgument, examples, open_base, table

if TYPE_CHECKING:
    from rich.table import Table

    from inlay.architectures.chart import Chart
    from inlay.core.site import Site


EXPLAINED = 110
"""Columns from which on there is room to say what each role is."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog=examples(
            ("inlay sites smollm2", "one line a role"),
            ("inlay sites ./my-model --all", "every place, by name"),
        )
    )(sites)


def sites(
    base: BaseArgument,
    every: Annotated[bool, typer.Option("--all", help="List every site, not only roles.")] = False,
) -> None:
    """Show the map of a base: where pieces can be set, and through which port."""
    model, _ = open_base(base, "stored")
    from inlay.architectures.families import FAMILIES
    from inlay.architectures.resolve import resolve

    chart = resolve(model)
    kind = model.config.model_type
    console = out()
    stacks = " + ".join(f"{len(s.layers)} blocks ({s.name})" for s in chart.stacks)
    total = sum(p.numel() for p in model.parameters())
    console.print(
        f"[bold]{type(model).__name__}[/]  {chart.kind}, {stacks}, {total:,} parameters",
        soft_wrap=True,
    )
    if FAMILIES.get(kind) is not chart.family:
        console.print(
            f"Nobody charted the family {kind!r}: this map was read from the model's structure, "
            "so look at it before you trust it (inlay check proves it).",
            style="yellow",
            soft_wrap=True,
        )
    _places(chart) if every else _roles(chart)


def _roles(chart: Chart) -> None:
    from inlay.core.site import ROLES

    columns = ["role", "sites", "for example", "x → y", "ports"]
    explained = out().width >= EXPLAINED
    shown = _map(*columns, *["what it is"] * explained)
    for role, meaning in ROLES.items():
        found = [site for site in chart.sites if site.role == role]
        if found:
            widths = dict.fromkeys(map(_widths, found))
            few = ", ".join([*widths][:2]) + (", …" if len(widths) > 2 else "")
            cells = [role, str(len(found)), found[0].name, few, _ports(found[0])]
            shown.add_row(*cells, *[f"[dim]{meaning}"] * explained)
    out().print(shown)
    out().print("Choose with at=: LoRA(at=('attn.q', 'mlp.down')); --all lists every site.")


def _places(chart: Chart) -> None:
    shown = _map("site", "role", "x → y", "ports", "module")
    for site in chart.sites:
        module = type(site.host).__name__ + (" (part of it)" if site.part is not None else "")
        shown.add_row(site.name, site.role, _widths(site), _ports(site), f"[dim]{module}")
    out().print(shown)


def _map(*columns: str) -> Table:
    shown = table()
    for number, name in enumerate(columns):
        numbers = name in ("sites", "x → y")
        shown.add_column(
            name,
            style="bold cyan" if number == 0 else "",
            justify="right" if numbers else "left",
            no_wrap=name != "what it is",
        )
    return shown


def _widths(site: Site) -> str:
    if site.heads:
        return f"{site.heads} heads × {site.head_dim}"
    return f"{site.d_in:,} → {site.d_out:,}"


def _ports(site: Site) -> str:
    """The ways in that exist at a site."""
    from inlay.runtime.attention import has_port

    if site.heads:
        return "keys" if has_port(site.host) else "[dim]none[/]"
    if site.role == "final":
        return "head"
    return "tap, slots" if site.role in ("embed", "embed.target") else "tap"
