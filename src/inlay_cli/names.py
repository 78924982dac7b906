"""Names to complete, read from the source: a TAB should not wait for torch to be imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path


def method_names() -> list[str]:
    """The names of the library's own methods."""
    files = sorted((_folder() / "methods").glob("*.py"))
    return sorted(name for file in files for name in _methods(ast.parse(file.read_text("utf-8"))))


def model_names() -> list[str]:
    """The names of the bundled models."""
    tree = ast.parse((_folder() / "hub" / "models.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "MODELS":
            keys = next(n.keys for n in ast.walk(node) if isinstance(n, ast.Dict))
            return [ast.literal_eval(key) for key in keys if key is not None]
    raise LookupError("inlay.hub.models defines no MODELS")


def _folder() -> Path:
    found = find_spec("inlay")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def _methods(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and "Method" in map(ast.unparse, node.bases):
            yield node.name
