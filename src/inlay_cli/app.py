"""`inlay`, the command line: its commands, exit codes, and errors on one line."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typing_extensions import override

from inlay_cli import (
    check,
    demo,
    evaluate,
    export,
    fuse,
    generate,
    inspect,
    intrinsic_dimension,
    merge,
    methods,
    names,
    pet,
    plan,
    predict,
    sites,
    train,
)
from inlay_cli.completion import complete_with_colons
from inlay_cli.console import err, fail, out
from inlay_cli.shared import examples

OK, BROKEN, FAILED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: done; done, and a law is broken; not done, with an error message; Ctrl-C."""

DEBUG, IMPORT = "--debug", "--import"
"""Options of every command, which may stand anywhere."""


TOGETHER = {"train", "pet", "fuse", "eval", "intrinsic-dimension"}
"""The commands that share their work where a launcher started several processes."""

OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What `torchrun` and `accelerate launch` tell a process of itself and the others."""


class Commands(TyperGroup):
    """The group of all commands; Ctrl-C in any of them prints one line instead of a traceback.

    Where a launcher started several processes, a command that does not share its work runs in the
    first of them alone, as if there were no others.
    """

    @override
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name not in TOGETHER:
            launched = {variable: os.environ.pop(variable, "0") for variable in OF_LAUNCHERS}
            if launched["RANK"] != "0":
                raise typer.Exit(OK)
        return name, command, rest

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
    "Train": (train, plan, pet, fuse, intrinsic_dimension),
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
    own_files: Annotated[
        list[Path] | None,
        typer.Option(
            IMPORT,
            metavar="FILE.py",
            help="Run a Python file first, which defines a method or a task of your own; may "
            "stand anywhere, and several times.",
            autocompletion=names.python_files,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Options of every command. `main` reads them itself, because they may stand anywhere."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    arguments: the words after `inlay`; those of the process by default.

    Returns the exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = False
    try:
        words, debug, paths = _split(words)
        if not debug:
            warnings.simplefilter("ignore")
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # whoever imports it
        if paths:
            _run_files(paths)
        return complete_with_colons(
            os.environ,
            lambda: app(words or ["--help"], prog_name="inlay", standalone_mode=False) or OK,
        )
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _report(error)


def _split(words: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    """The words without the options of every command; whether to debug; the files to import."""
    end = words.index("--") if "--" in words else len(words)
    rest: list[str] = []
    paths: list[str] = []
    before = iter(words[:end])
    for word in before:
        if word == IMPORT or word.startswith(f"{IMPORT}="):
            path = word.removeprefix(IMPORT).removeprefix("=") or next(before, "")
            if not path:
                raise typer.BadParameter(f"{IMPORT} takes a Python file, such as my_method.py")
            paths.append(path)
        elif word != DEBUG:
            rest.append(word)
    return [*rest, *words[end:]], DEBUG in words[:end], paths


def _run_files(paths: Sequence[str]) -> None:
    """Run Python files of the user, which may define methods and tasks."""
    from inlay.core.own_files import run_file
    from inlay.errors import SpecError

    for path in paths:
        run_file(path, SpecError)


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
