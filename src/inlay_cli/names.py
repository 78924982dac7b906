"""Names for tab completion, read from the library's source.

Importing `inlay` imports torch, which takes seconds; parsing its files takes milliseconds.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

ROOTS = {"Method", "Preset"}
"""The classes of the library whose subclasses a recipe can name."""


def method_names() -> list[str]:
    """The names of the library's methods, sorted."""
    return methods_in(_library() / "methods")


def model_names() -> list[str]:
    """The names of the bundled models."""
    return models_in(_library() / "hub")


def methods_in(folder: Path) -> list[str]:
    """The names of the methods that the files below a folder define, sorted."""
    known, listed = set(ROOTS), set[str]()
    classes = list(_classes(folder))
    while classes:  # a class may be defined before its base is read
        subclasses = [node for node in classes if known & set(map(_last_name, node.bases))]
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


def _is_listed(node: ast.ClassDef) -> bool:
    """Whether a class may be named by users: not private, and not defined with `listed=False`."""
    unlisted = any(
        keyword.arg == "listed" and ast.unparse(keyword.value) == "False"
        for keyword in node.keywords
    )
    return not unlisted and not node.name.startswith("_")
