"""`inlay`, the command: the list of commands, and what becomes of errors."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from inlay_cli import (
    check,
    demo,
    export,
    generate,
    inspect,
    merge,
    methods,
    pet,
    reproduce,
    sites,
    train,
)
from inlay_cli import eval as evaluation
from inlay_cli.console import err, fail, out
from inlay_cli.shared import examples

OK, BROKEN, FAILED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: done; done, and the answer is no; not done, for a reason that was said; Ctrl-C."""

DEBUG = "--debug"


class Commands(TyperGroup):
    """The list of commands; Ctrl-C in any of them is one line, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            if not stop.args:  # else who stopped has said so
                err().print("stopped")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="inlay",
    cls=Commands,
    help="Set small trained pieces into a frozen transformer.",
    epilog=examples(
        ("inlay demo", "a real model learns to judge reviews"),
        ("inlay methods", "what there is to set in"),
        ("inlay train --help", "how to teach your own task"),
    ),
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for module in (
    demo,
    train,
    pet,
    evaluation,
    generate,
    check,
    inspect,
    methods,
    sites,
    merge,
    export,
    reproduce,
):
    module.register(app)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        out().print(f"inlay {version('inlay')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_version, is_eager=True),
    ] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG, help="Show a traceback when something fails; goes anywhere.")
    ] = False,
) -> None:
    """Options of every command. `main` reads `--debug` itself, wherever it stands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = given[: given.index("--")] if "--" in given else given
    debug = DEBUG in words
    given = [*(word for word in words if word != DEBUG), *given[len(words) :]]
    if not debug:
        warnings.simplefilter("ignore")
    try:
        return app(given or ["--help"], prog_name="inlay", standalone_mode=False) or OK
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _failed(error)


def _failed(error: Exception) -> int:
    """Say in one line what went wrong, and what helps."""
    if isinstance(error, typer.TyperException):
        fail(_usage(error))
    elif _ours(error):
        fail(str(error))
    elif isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{error.filename}: "
        fail(f"{where}{error.strerror}")
    else:
        fail(f"{type(error).__name__}: {error}; nobody expected that, see where with {DEBUG}")
    return FAILED


def _ours(error: Exception) -> bool:
    from inlay.errors import InlayError

    return isinstance(error, InlayError)


def _usage(error: typer.TyperException) -> str:
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    return message if context is None else f"{message} (see {context.command_path} --help)"


if __name__ == "__main__":
    sys.exit(main())
