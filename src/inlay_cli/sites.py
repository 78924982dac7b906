"""inlay sites: where pieces can go in a base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from inlay_cli.console import out, table
from inlay_cli.shared import BaseArgument, examples, open_base

if TYPE_CHECKING:
    from rich.table import Table

    from inlay.architectures.chart import Chart
    from inlay.core.site import Site


WIDE = 115
"""Columns of a terminal in which the meaning of each role fits."""


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        rich_help_panel=panel,
        epilog=examples(
            ("inlay sites smollm2", "a line for each role"),
            ("inlay sites ./my-model --all", "every site, by name"),
        ),
    )(sites)


def sites(
    base: BaseArgument,
    every: Annotated[bool, typer.Option("--all", help="List every site, not only roles.")] = False,
) -> None:
    """Show where pieces can go in a base, and through which port."""
    model, _ = open_base(base, "stored")
    from inlay.architectures.families import FAMILIES
    from inlay.architectures.resolve import resolve

    chart = resolve(model)
    family = model.config.model_type
    console = out()
    stacks = " + ".join(f"{len(stack.layers)} blocks ({stack.name})" for stack in chart.stacks)
    total = sum(parameter.numel() for parameter in model.parameters())
    console.print(
        f"[bold]{type(model).__name__}[/]  {chart.kind}, {stacks}, {total:,} parameters",
        soft_wrap=True,
    )
    if FAMILIES.get(family) is not chart.family:
        console.print(
            f"The family {family!r} has no description here: these sites were found from the "
            "model's structure. Check them before you rely on them, also with inlay check.",
            style="yellow",
            soft_wrap=True,
        )
    if every:
        console.print(_by_site(chart))
    else:
        console.print(_by_role(chart, explained=console.width >= WIDE))
        console.print("Choose with at=: LoRA(at=('attn.q', 'mlp.down')); --all lists every site.")


def _by_role(chart: Chart, explained: bool) -> Table:
    """A line for each role. explained: with what the role is."""
    from inlay.core.site import ROLES

    columns = ["role", "sites", "for example", "x → y", "ports"]
    rows = _table(*columns, *["what it is"] * explained)
    for role, meaning in ROLES.items():
        of_role = [site for site in chart.sites if site.role == role]
        if of_role:
            sizes = list(dict.fromkeys(map(_size, of_role)))
            size = ", ".join(sizes[:2]) + (", …" if len(sizes) > 2 else "")
            cells = [role, str(len(of_role)), of_role[0].name, size, _ports(of_role[0])]
            rows.add_row(*cells, *[f"[dim]{meaning}"] * explained)
    return rows


def _by_site(chart: Chart) -> Table:
    """A line for each site."""
    rows = _table("site", "role", "x → y", "ports", "module")
    for site in chart.sites:
        module = type(site.host).__name__ + (" (part of it)" if site.part is not None else "")
        rows.add_row(site.name, site.role, _size(site), _ports(site), f"[dim]{module}")
    return rows


def _table(*columns: str) -> Table:
    rows = table()
    for number, name in enumerate(columns):
        rows.add_column(
            name,
            style="bold cyan" if number == 0 else "",
            justify="right" if name in ("sites", "x → y") else "left",
            no_wrap=name != "what it is",
        )
    return rows


def _size(site: Site) -> str:
    """The widths of a site's input and output, or its key-value heads."""
    if site.heads:
        return f"{site.heads} heads × {site.head_dim}"
    return f"{site.d_in:,} → {site.d_out:,}"


def _ports(site: Site) -> str:
    """The ports that a site has."""
    from inlay.runtime.attention import has_port

    if site.heads:
        return "extra keys/values" if has_port(site.host) else "[dim]none[/]"
    if site.role == "final":
        return "head, side networks"
    if site.role == "final.target":
        return "side networks"
    return "hooks, prompts" if site.role in ("embed", "embed.target") else "hooks"
