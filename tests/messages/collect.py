"""Find the messages in the source.

A message is the first argument of every call of an error class: most are raised on the spot, a few
are returned by a helper whose callers raise them. What is computed is in braces, as in an f-string; `(a | b)` is one of two texts, and `[a]` is there or not. Texts of
local variables, of constants and of private functions of the same file are written out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"

ROOTS = {"InlayError", "BadParameter"}
"""Classes that carry a message to the user, and so do their subclasses."""

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(frozen=True)
class Message:
    """One message. file: relative to the source folder. error: the class."""

    file: str
    line: int
    error: str
    text: str


def messages(source: Path = SOURCE) -> list[Message]:
    """All messages below a folder, file by file, in the order of their lines."""
    trees = {
        path.relative_to(source).as_posix(): ast.parse(path.read_text("utf-8"))
        for path in sorted(source.rglob("*.py"))
    }
    errors = _error_classes(trees.values())
    constants = {name: value for tree in trees.values() for name, value in _constants(tree)}
    return [
        message
        for file, tree in trees.items()
        for message in sorted(
            _in_file(file, tree, errors, constants), key=lambda message: message.line
        )
    ]


def document(entries: list[Message]) -> str:
    """The messages as Markdown, a section for each file."""
    lines = [
        "# Messages",
        "",
        "Every message of an error that is raised on purpose, to be read as prose. Generated from "
        "the source: `python -m tests.messages`.",
    ]
    for file in dict.fromkeys(message.file for message in entries):
        in_file = [message for message in entries if message.file == file]
        items = dict.fromkeys(f"- {message.error}: {message.text}" for message in in_file)
        lines += ["", f"## {file}", "", *items]
    return "\n".join(lines) + "\n"


def _error_classes(trees: Iterable[ast.Module]) -> set[str]:
    """The names of the roots and of all their subclasses, in whatever file they are defined."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    names = set(ROOTS)
    while True:
        more = {
            node.name for node in classes if names & {_last_name(base) for base in node.bases}
        } - names
        if not more:
            return names
        names |= more


def _last_name(node: ast.expr) -> str:
    """`BadParameter` of `typer.BadParameter`; empty for what has no name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _constants(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """The texts that a file defines as constants, by name."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and _is_text(node.value):
            yield from ((_last_name(target), node.value) for target in node.targets)


def _in_file(
    file: str, tree: ast.Module, errors: set[str], constants: Mapping[str, ast.expr]
) -> Iterator[Message]:
    reader = _Reader(tree, constants)
    for scope, call in _calls(tree, None):
        name = _last_name(call.func)
        if name in errors and call.args:
            text = " ".join(reader.text(call.args[0], scope).split())
            yield Message(file, call.lineno, name, text)


def _calls(node: ast.AST, scope: Function | None) -> Iterator[tuple[Function | None, ast.Call]]:
    """Every call, with the function around it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield scope, child
        yield from _calls(child, child if isinstance(child, Function) else scope)


class _Reader:
    """Turns the expressions of one file into their texts."""

    def __init__(self, tree: ast.Module, constants: Mapping[str, ast.expr]):
        self.constants = {**constants, **dict(_constants(tree))}
        self.functions = {
            node.name: node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name.startswith("_")
        }

    def text(self, node: ast.expr, scope: Function | None, depth: int = 0) -> str:
        """A message as one would read it. depth: how many names have been followed to get here."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.JoinedStr):
            return "".join(self._part(part, scope, depth) for part in node.values)
        if isinstance(node, ast.BinOp) and _is_text(node):
            return self.text(node.left, scope, depth) + self.text(node.right, scope, depth)
        if isinstance(node, ast.IfExp) and _is_text(node):
            return self._choice([node.body, node.orelse], scope, depth)
        if depth < 2 and (values := self._values(node, scope)):
            return self._choice(*values, depth + 1)
        return f"{{{ast.unparse(node)}}}"

    def _part(self, node: ast.expr, scope: Function | None, depth: int) -> str:
        """A part of an f-string."""
        if not isinstance(node, ast.FormattedValue):
            return self.text(node, scope, depth)
        if node.conversion != -1 or node.format_spec is not None:
            return f"{{{ast.unparse(node.value)}}}"
        return self.text(node.value, scope, depth)

    def _choice(self, nodes: Iterable[ast.expr], scope: Function | None, depth: int) -> str:
        """One of several texts."""
        texts = list(dict.fromkeys(self.text(node, scope, depth) for node in nodes))
        if len(texts) == 1:
            return texts[0]
        if "" in texts:
            return f"[{' | '.join(filter(None, texts))}]"
        return f"({' | '.join(texts)})"

    def _values(
        self, node: ast.expr, scope: Function | None
    ) -> tuple[list[ast.expr], Function | None] | None:
        """The texts of a local name, a constant or a private function, and their function."""
        if isinstance(node, ast.Name):
            nodes, where = list(_assigned(node.id, scope)), scope
            if not nodes and node.id.isupper() and node.id in self.constants:
                nodes, where = [self.constants[node.id]], None
        elif isinstance(node, ast.Call) and _last_name(node.func) in self.functions:
            where = self.functions[_last_name(node.func)]
            nodes = [
                part.value
                for part in ast.walk(where)
                if isinstance(part, ast.Return) and part.value is not None
            ]
        else:
            return None
        texts = [value for value in nodes if _is_text(value)]
        return (texts, where) if texts else None


def _assigned(name: str, scope: Function | None) -> Iterator[ast.expr]:
    """The values that a function assigns to a local name."""
    for node in ast.walk(scope) if scope is not None else ():
        if isinstance(node, ast.Assign) and name in map(_last_name, node.targets):
            yield node.value


def _is_text(node: ast.expr) -> bool:
    """Whether a value is written out as text, at least in one of its branches."""
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) or _is_text(node.orelse)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
