"""What there is to say of each method, gathered from its own file: for tables and pages."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from inlay import METHODS, Method, attach
from inlay.core.parse import make_method, method_class
from inlay.errors import InlayError, MergeError
from inlay.merge import plan
from inlay.runtime.port import port_for

SOURCE = re.compile(r" \([^()]*\d{4}[^()]*\)\.?$")
"""The citation at the end of a method's first line."""

TITLE = re.compile(r"^[^:]+: ")
"""What the method is called, at its beginning."""


@dataclass(frozen=True)
class Field:
    """One field of a method. default: as one would type it. source: where that comes from."""

    name: str
    default: str
    kind: str
    about: str
    source: str


@dataclass(frozen=True)
class Entry:
    """One method.

    line: the first line of its file, with the source. equation: the same without it.
    about: what its class says, without the fields. rate: the learning rate that it takes by
    default, and where that comes from. port: the way in. merges: whether it folds
    into weights (None where it could not be tried). identity: whether it starts as a no-op.
    """

    name: str
    line: str
    equation: str
    paper: str
    about: str
    port: str
    merges: bool | None
    identity: bool
    rate: tuple[float, str]
    fields: tuple[Field, ...]


@cache
def catalogue() -> tuple[Entry, ...]:
    """Every registered method, by name."""
    return tuple(entry(name) for name in sorted(METHODS, key=str.lower))


def entry(name: str) -> Entry:
    """One method. Raises SpecError with the nearest name."""
    kind = method_class(name)
    line = (sys.modules[kind.__module__].__doc__ or kind.__doc__ or "").strip().split("\n")[0]
    about, fields = _read(inspect.getdoc(kind) or "")
    port, merges = _tried(kind)
    return Entry(
        name=name,
        line=line,
        equation=TITLE.sub("", SOURCE.sub("", line)).rstrip("."),
        paper=kind.paper,
        about=about,
        port=port,
        merges=merges,
        identity=kind.identity,
        rate=(make_method(name, {}).learning_rate(), kind.sources.get("lr", "")),
        fields=tuple(
            Field(
                field.name,
                _default(field),
                str(field.type),
                fields.get(field.name, ""),
                kind.sources.get(field.name, ""),
            )
            for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        ),
    )


def _default(field: dataclasses.Field) -> str:
    value = field.default
    if field.name == "at" and getattr(value, "layers", 0) is None and value.stacks is None:  # type: ignore[union-attr]
        roles = value.roles  # type: ignore[union-attr]
        return repr(roles[0] if len(roles) == 1 else roles)
    return repr(value)


def _read(doc: str) -> tuple[str, dict[str, str]]:
    """A docstring as its prose, and what it says of each field (`name:  text`, then indented)."""
    prose: list[str] = []
    fields: dict[str, str] = {}
    current = None
    for line in doc.splitlines():
        found = re.match(r"(\w+): +(\S.*)", line)
        if found:
            current = found[1]
            fields[current] = found[2]
        elif current is not None and line.startswith(" "):
            fields[current] += f" {line.strip()}"
        elif line.strip() or current is None:
            current = None
            prose.append(line)
    return "\n".join(prose).strip(), fields


def _tried(kind: type[Method]) -> tuple[str, bool | None]:
    """The way in that a method takes, and whether it merges, by trying it on small models."""
    for model in _specimens():
        try:
            handle = attach(model, make_method(kind.__name__, {}))
        except InlayError:
            continue
        try:
            ports = sorted({port_for(placed.piece).label for placed in handle.placed})
            try:
                return " + ".join(ports), bool(plan(model, handle.spec, handle.placed))
            except MergeError:
                return " + ".join(ports), False
        finally:
            handle.detach()
    return "", None


@cache
def _specimens() -> tuple:
    """An encoder and an encoder–decoder, small and random: between them every role there is."""
    import torch
    from transformers import BartConfig, BartModel, BertConfig, BertModel

    sizes: dict[str, Any] = {"vocab_size": 99, "num_hidden_layers": 1, "num_attention_heads": 2}
    widths: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64}
    two: dict[str, Any] = {"vocab_size": 99, "d_model": 64}
    for side in ("encoder", "decoder"):
        two |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 64}
    with torch.random.fork_rng(devices=[]):
        bert = BertModel(BertConfig(**sizes, **widths))
        bart = BartModel(BartConfig(**two))
    return bert.eval(), bart.eval()
