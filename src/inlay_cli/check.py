"""inlay check: prove the laws of an inlay or a method on the user's own model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from inlay_cli import names
from inlay_cli.console import busy, err, out
from inlay_cli.shared import (
    BaseArgument,
    DeviceOption,
    DtypeOption,
    OptionalFileArgument,
    QuantizeOption,
    examples,
    open_base,
    open_inlay,
)

if TYPE_CHECKING:
    from inlay.core.method import Spec
    from inlay.handle import Inlay


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        rich_help_panel=panel,
        epilog=examples(
            ("inlay check smollm2 legal.safetensors", "a trained inlay"),
            ('inlay check ./my-model --method "LoRA(rank=8)"', "a method, before you train it"),
            ("inlay check smollm2 --method diagonal.py:Diagonal", "a method of your own"),
            ("inlay check smollm2 --method LoRA --law compiled", "whether torch.compile takes it"),
        ),
    )(check)


def check(
    base: BaseArgument,
    file: OptionalFileArgument = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Check a method, or a sum of methods, instead of a file.",
            autocompletion=names.methods,
            show_default=False,
        ),
    ] = None,
    law: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this law; may be given several times. The law 'compiled', which takes long, "
            "is checked only where it is named.",
            autocompletion=names.laws,
            show_default=False,
        ),
    ] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
) -> None:
    """Prove on your own model what inlay promises, law by law.

    The laws say, for example, that detaching leaves no trace, that rows do not influence each
    other, and that padding changes nothing. The exit code is 1 if a law does not hold.
    """
    if (file is None) == (method is None):
        raise typer.BadParameter("give either a FILE or --method")
    from inlay.core.parse import parse
    from inlay.errors import nearest
    from inlay.laws import LAWS, SLOW_LAWS
    from inlay.laws.check import check as check_laws

    order = law or list(LAWS)
    for name in order:
        if name not in LAWS | SLOW_LAWS:
            raise typer.BadParameter(f"no law is called {name!r}{nearest(name, LAWS | SLOW_LAWS)}")

    subject: Inlay | Spec
    if method is not None:
        subject = parse(method)  # before the base is loaded: a wrong name should not cost a wait
    model, tokenizer = open_base(base, dtype, device, quantize)
    if file is not None:
        with busy(f"reading {file}"):
            subject = open_inlay(model, tokenizer, file)

    def report(step: str) -> None:
        show(f"law {order.index(step) + 1} of {len(order)}: {step}" if step in order else step)

    with busy("checking") as show:
        findings = check_laws(model, subject, laws=tuple(order), report=report)
    out().print(findings)
    if not findings.holds:
        broken = [finding.law for finding in findings.findings if finding.holds is False]
        laws = "this law does" if len(broken) == 1 else "these laws do"
        err().print(
            f"{', '.join(broken)}: {laws} not hold; do not rely on it with this inlay and model",
            style="bold red",
        )
        raise typer.Exit(1)
