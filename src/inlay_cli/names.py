"""Names for tab completion, read from the library's source and from folders; nothing is run.

Importing `inlay` imports torch, which takes seconds; parsing its files takes milliseconds.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

ROOTS = {"Method", "Preset", "Wrapper"}
"""The classes of the library whose subclasses a recipe can name."""

TASK_ROOTS = {"Task"}

RECIPES = (".yaml", ".yml")
INLAYS = (".safetensors",)
DATA = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz")
"""How the names of files end."""


def method_names() -> list[str]:
    """The names of the library's methods, sorted."""
    return methods_in(_library() / "methods")


def model_names() -> list[str]:
    """The names of the bundled models."""
    return models_in(_library() / "hub")


def methods(incomplete: str) -> list[str]:
    """What may be written for a method: its name, or `file.py:Name`."""
    return [*method_names(), *_in_files(incomplete, ROOTS, _library() / "methods")]


def tasks(incomplete: str, kinds: Iterable[str]) -> list[str]:
    """What may be written for a task: one of the kinds, or `file.py:Name`."""
    return [*kinds, *_in_files(incomplete, TASK_ROOTS, _library() / "tasks")]


def laws() -> list[str]:
    """The laws by name, in their order; those last that are checked only by name."""
    file = _library() / "laws" / "__init__.py"
    return [
        key.value
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)
        for key in node.value.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    ]


def bases(incomplete: str) -> list[str]:
    """What may be written for a base: a bundled name, or a folder."""
    return [*model_names(), *paths(incomplete, ())]


def bases_or_inlays(incomplete: str) -> list[str]:
    """What may be written where a base or an inlay's file stands."""
    return [*model_names(), *inlays(incomplete)]


def recipes(incomplete: str) -> list[str]:
    """The recipes that a path may become, and the folders on the way."""
    return paths(incomplete, RECIPES)


def inlays(incomplete: str) -> list[str]:
    """The inlays that a path may become, and the folders on the way."""
    return paths(incomplete, INLAYS)


def data(incomplete: str) -> list[str]:
    """The files of rows that a path may become, and folders."""
    return paths(incomplete, DATA)


def python_files(incomplete: str) -> list[str]:
    """The Python files that a path may become, and the folders on the way."""
    return paths(incomplete, (".py",))


def paths(incomplete: str, suffixes: tuple[str, ...]) -> list[str]:
    """Files that end like this and folders, which a path may become.

    With a folder come the files inside it: shells add a space after a single match.
    """
    folder, _, start = incomplete.rpartition("/")
    prefix = f"{folder}/" if "/" in incomplete else ""
    names: list[str] = []
    for entry in _entries(Path(prefix or ".").expanduser()):
        if not entry.name.startswith(start):
            continue
        if entry.is_dir():
            inside = [e.name for e in _entries(entry) if e.is_dir() or e.name.endswith(suffixes)]
            names += [f"{prefix}{entry.name}/", *(f"{prefix}{entry.name}/{n}" for n in inside)]
        elif entry.name.endswith(suffixes):
            names.append(prefix + entry.name)
    return names


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, but for hidden names; nothing where it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def _in_files(incomplete: str, roots: set[str], library: Path) -> list[str]:
    """Python files and, behind a colon, the classes in them whose bases are below `roots`."""
    path, colon, _ = incomplete.rpartition(":")
    if not colon:
        return [name if name.endswith("/") else f"{name}:" for name in python_files(incomplete)]
    try:
        tree = ast.parse(Path(path).expanduser().read_text("utf-8"))
    except (OSError, ValueError, SyntaxError):
        return []
    own = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    names = {node.name for node in own}
    below = _below([*_classes(library), *own], roots)
    return [f"{path}:{name}" for name in below if name in names]


def methods_in(folder: Path) -> list[str]:
    """The names of the methods that the files below a folder define, sorted."""
    return _below(list(_classes(folder)), ROOTS)


def _below(classes: list[ast.ClassDef], roots: set[str]) -> list[str]:
    """The names of the classes that users may name and that are below the roots, sorted."""
    known, listed = set(roots), set[str]()
    while classes:  # a class may be defined before its base is read
        subclasses = [node for node in classes if known & set(map(_base_name, node.bases))]
        if not subclasses:
            break
        known |= {node.name for node in subclasses}
        listed |= {node.name for node in subclasses if _is_listed(node)}
        classes = [node for node in classes if node not in subclasses]
    return sorted(listed)


def models_in(folder: Path) -> list[str]:
    """The keys of the table `MODELS`, in whichever file below a folder it is defined."""
    for tree in _trees(folder):
        for node in tree.body:
            if isinstance(node, ast.Assign):
                targets = node.targets
            elif isinstance(node, ast.AnnAssign):
                targets = [node.target]
            else:
                continue
            if "MODELS" in map(_last_name, targets):
                tables = (table for table in ast.walk(node) if isinstance(table, ast.Dict))
                keys = next(tables, ast.Dict([], [])).keys
                return [str(key.value) for key in keys if isinstance(key, ast.Constant)]
    return []


def _library() -> Path:
    spec = find_spec("inlay")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _trees(folder: Path) -> Iterator[ast.Module]:
    for path in sorted(folder.rglob("*.py")):
        yield ast.parse(path.read_text("utf-8"))


def _classes(folder: Path) -> Iterator[ast.ClassDef]:
    for tree in _trees(folder):
        yield from (node for node in tree.body if isinstance(node, ast.ClassDef))


def _last_name(node: ast.expr) -> str:
    """`Method` for both `Method` and `core.Method`."""
    return ast.unparse(node).rpartition(".")[2]


def _base_name(node: ast.expr) -> str:
    """`Task` for `Task[Batch, Outputs]`, and for `tasks.Task`."""
    return _last_name(node.value if isinstance(node, ast.Subscript) else node)


def _is_listed(node: ast.ClassDef) -> bool:
    """Whether a class may be named by users: not private, and not defined with `listed=False`."""
    unlisted = any(
        keyword.arg == "listed" and ast.unparse(keyword.value) == "False"
        for keyword in node.keywords
    )
    return not unlisted and not node.name.startswith("_")
