"""`inlay`, the command line: its commands, exit codes, and errors on one line."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typing_extensions import override

from inlay_cli import (
    check,
    demo,
    evaluate,
    export,
    generate,
    inspect,
    merge,
    methods,
    pet,
    predict,
    sites,
    train,
)
from inlay_cli.console import err, fail, out
from inlay_cli.shared import examples

OK, BROKEN, FAILED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: done; done, and a law is broken; not done, with an error message; Ctrl-C."""

DEBUG = "--debug"


class Commands(TyperGroup):
    """The group of all commands; Ctrl-C in any of them prints one line instead of a traceback."""

    @override
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            if not interrupt.args:  # otherwise the command has printed its own message
                err().print("stopped")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="inlay",
    cls=Commands,
    help="Adapt a frozen transformer to a task with small trained pieces: LoRA, adapters, "
    "prefixes, prompts, and sums of them.",
    epilog=examples(
        ("inlay demo", "see a real model learn to judge reviews"),
        ("inlay methods", "what can be trained; inlay methods LoRA explains one method"),
        ("inlay sites smollm2", "where pieces can go in a model"),
        ("inlay train --help", "how to train on your own task"),
    ),
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PANELS = {
    "Begin": (demo, methods, sites),
    "Train": (train, pet),
    "Use": (predict, evaluate, generate, check, inspect, merge, export),
}
"""The commands by heading, in the order of the help page."""

for panel, modules in PANELS.items():
    for module in modules:
        module.register(app, panel)


def _show_version(show: bool) -> None:
    if show:
        out().print(f"inlay {version('inlay')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG, help="Show the traceback of an error; may stand anywhere.")
    ] = False,
) -> None:
    """Options of every command. `main` reads `--debug` itself, because it may stand anywhere."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    arguments: the words after `inlay`; those of the process by default.

    Returns the exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    debug = DEBUG in words[:end]
    words = [*(word for word in words[:end] if word != DEBUG), *words[end:]]
    if not debug:
        warnings.simplefilter("ignore")
    try:
        return app(words or ["--help"], prog_name="inlay", standalone_mode=False) or OK
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _report(error)


def _report(error: Exception) -> int:
    """Print an error on one line, and return the exit code."""
    if isinstance(error, typer.TyperException):
        fail(_usage(error))
    elif _is_ours(error):
        fail(str(error))
    elif isinstance(error, OSError) and error.strerror:
        path = "" if error.filename is None else f"{error.filename}: "
        fail(f"{path}{error.strerror}")
    else:
        fail(f"unexpected {type(error).__name__}: {error}; add {DEBUG} to see the traceback")
    return FAILED


def _is_ours(error: Exception) -> bool:
    from inlay.errors import InlayError

    return isinstance(error, InlayError)


def _usage(error: typer.TyperException) -> str:
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    return message if context is None else f"{message} (see {context.command_path} --help)"


if __name__ == "__main__":
    sys.exit(main())
