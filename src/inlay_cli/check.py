"""inlay check: prove on the user's own model that an inlay keeps the laws."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay_cli import names
from inlay_cli.console import busy, err, out
from inlay_cli.shared import (
    AnyFileArgument,
    BaseArgument,
    DeviceOption,
    DtypeOption,
    examples,
    open_base,
    open_inlay,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog=examples(
            ("inlay check smollm2 legal.safetensors", "a trained inlay"),
            ('inlay check ./my-model --method "LoRA(rank=8)"', "a method, before training it"),
        )
    )(check)


def check(
    base: BaseArgument,
    file: AnyFileArgument = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Instead of a file: a method, or a sum of them.",
            autocompletion=names.method_names,
        ),
    ] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Prove the laws on your own model: nothing left behind, rows apart, padding inert, …

    Ends with exit code 1 where a law does not hold.
    """
    if (file is None) == (method is None):
        raise typer.BadParameter("give a FILE, or --method, and not both")
    from inlay.core.parse import parse
    from inlay.laws import LAWS
    from inlay.laws.check import check as run

    spec = parse(method or "LoRA")
    model, tokenizer = open_base(base, dtype, device)
    with busy("reading the inlay"):
        subject = spec if file is None else open_inlay(model, tokenizer, file)
    order = list(LAWS)

    def report(step: str) -> None:
        say(f"law {order.index(step) + 1} of {len(order)}: {step}" if step in LAWS else step)

    with busy("checking") as say:
        found = run(model, subject, report=report)
    out().print(found)
    if not found.holds:
        err().print("a law is broken: do not trust this inlay on this model", style="bold red")
        raise typer.Exit(1)
