"""Methods and tasks in a file of one's own, written `file.py:Name` where a name is expected.

Such a file is a program, and it is run. That happens only because a user named it: on the command
line, in a recipe given there, or in Python. An inlay's file, or a recipe found next to one, names
it in vain: what they say is used for messages and never as a reason to run anything.
"""

from __future__ import annotations

import re
import sys
from hashlib import sha256
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from inlay.errors import InlayError, nearest

NAME = re.compile(r"(?P<path>(?:[A-Za-z]:)?[^\s+(),:='\"]+\.py):(?P<name>[A-Za-z_]\w*)")
"""`methods/diagonal.py:Diagonal`. A path with spaces, brackets or quotes cannot be written so."""

PREFIX = "inlay_own_file_"
"""How the names of the modules begin that `run_file` makes."""


def split_name(text: str) -> tuple[str, str] | None:
    """The path and the name of `file.py:Name`; None for any other text."""
    match = NAME.fullmatch(text)
    return None if match is None else (match["path"], match["name"])


def paths_in(text: str) -> list[str]:
    """The paths of all `file.py:Name` in a text, each once."""
    return list(dict.fromkeys(match["path"] for match in NAME.finditer(text)))


def run_file(path: str | Path, error: type[InlayError]) -> ModuleType:
    """Run a Python file as a module, once per process; one that is imported already is returned.

    path: relative to the current folder. error: raised where the file cannot be read or run.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise error(f"there is no file {path}; paths are read from the current folder")
    imported = _imported(file)
    if imported is not None:
        return imported
    digest = sha256(str(file).encode()).hexdigest()[:8]
    spec = spec_from_file_location(f"{PREFIX}{file.stem}_{digest}", file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up there
    try:
        spec.loader.exec_module(module)
    except BaseException as problem:
        del sys.modules[spec.name]
        if isinstance(problem, InlayError) or not isinstance(problem, Exception):
            raise
        raise error(f"{path} cannot be run: {type(problem).__name__}: {problem}") from problem
    return module


def require_run(path: str | Path, error: type[InlayError]) -> None:
    """Raise `error` unless a file was run, or imported, in this process.

    For a name that something else than the user gave, such as a recipe next to a file.
    """
    if _imported(Path(path).expanduser().resolve()) is None:
        raise error(
            f"{path} is a program, and a recipe found next to a file does not make it run; add "
            f"--import {path} to the command, or import it in Python"
        )


def class_in(path: str, name: str, root: type, error: type[InlayError]) -> Any:
    """The class `name` of a file of one's own, which is run unless it was before.

    root: what it must be a subclass of. error: raised where there is no such class.
    """
    module = run_file(path, error)
    classes = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, root)
    }
    if name not in classes:
        own = [key for key, value in classes.items() if value.__module__ == module.__name__]
        what = root.__name__.lower()
        known = (
            nearest(name, own) if own else f"; define it there, as a class based on {root.__name__}"
        )
        raise error(f"{path} has no {what} {name!r}{known}")
    return classes[name]


def origin_of(kind: type) -> str:
    """Where a class comes from: the name of a file or a module; "" for inlay's own classes."""
    module = kind.__module__
    if module.split(".")[0] == "inlay":
        return ""
    if module.startswith(PREFIX) and module in sys.modules:
        return Path(str(vars(sys.modules[module])["__file__"])).name
    return module


def how_to_get(origin: str) -> str:
    """The rest of a message about a class that is not there: where it is, and what to do.

    origin: what `origin_of` returned where it was, and what a file says: text, and nothing else.
    """
    if origin == "__main__":
        return "in the program that trained it; define it before this file is loaded"
    if origin.endswith(".py"):
        return f"in {origin!r:.120}; run that file first, by --import or an import in Python"
    return f"in the module {origin!r:.120}; install and import that first"


def _imported(file: Path) -> ModuleType | None:
    """The module of a file that was run or imported already."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            origin = vars(module).get("__file__")
            if origin is not None and Path(origin) == file:
                return module
    return None
