"""What each method's file says about it, as data for tables and pages."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import BartConfig, BartModel, BertConfig, BertModel, PreTrainedModel

from inlay import METHODS, Method, Where, attach
from inlay.core import own_files
from inlay.core.parse import make_method, method_class
from inlay.errors import InlayError, MergeError, SpecError
from inlay.merge import plan
from inlay.runtime.port import port_for

CITATION = re.compile(r" \([^()]*\d{4}[^()]*\)\.?$")
"""The paper, at the end of a method's first line."""

TITLE = re.compile(r"^[^:]+: ")
"""The method's name, at the beginning of its first line."""


@dataclass(frozen=True)
class Field:
    """One field of a method.

    default: as one would type it. about: what it means. source: where the default comes from.
    """

    name: str
    default: str
    about: str
    source: str


@dataclass(frozen=True)
class Entry:
    """One method.

    line: the first line of its file, with the paper. equation: the same without name and paper.
    about: its docstring without the fields. port: how it acts on the base; empty if no small model
    has its sites. merges: whether it folds into weights; None if no small model has its sites.
    identity: whether it starts as the base. prepares: whether it looks at data before it is
    attached. learning_rate: the default, and where it comes from.
    """

    name: str
    line: str
    equation: str
    paper: str
    about: str
    port: str
    merges: bool | None
    identity: bool
    prepares: bool
    learning_rate: tuple[float, str]
    fields: tuple[Field, ...]


@cache
def catalogue() -> tuple[Entry, ...]:
    """Every registered method, sorted by name."""
    return tuple(entry(name) for name in sorted(METHODS, key=str.lower))


def entry(name: str) -> Entry:
    """One method. name: also `file.py:Name`, for one of one's own; the file is run.

    Raises SpecError with the nearest name.
    """
    own = own_files.split_name(name)
    kind = method_class(name) if own is None else own_files.class_in(*own, Method, SpecError)
    name = kind.__name__
    method = make_method(name, {})
    doc = sys.modules[kind.__module__].__doc__ or kind.__doc__ or ""
    line = doc.strip().split("\n")[0]
    about, meanings = parse_docstring(inspect.getdoc(kind) or "")
    port, merges = _try(kind)
    return Entry(
        name=name,
        line=line,
        equation=TITLE.sub("", CITATION.sub("", line)).rstrip("."),
        paper=method.paper,
        about=about,
        port=port,
        merges=merges,
        identity=method.identity,
        prepares=method.needs_preparation,
        learning_rate=(method.learning_rate(), method.sources.get("lr", "")),
        fields=tuple(
            Field(
                field.name,
                _typed(getattr(method, field.name)),
                meanings.get(field.name, ""),
                method.sources.get(field.name, ""),
            )
            for field in dataclasses.fields(method)  # type: ignore[arg-type]
        ),
    )


def _typed(default: Any) -> str:
    """A default as one would type it: a role alone instead of a `Where` with one role."""
    if isinstance(default, Where) and default.layers is None and default.stacks is None:
        roles = default.roles
        return repr(roles[0] if len(roles) == 1 else roles)
    return repr(default)


def parse_docstring(doc: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its prose and the meaning of each field.

    A field's meaning is `name:  text` at the beginning of a line, and the indented lines after it.
    """
    prose: list[str] = []
    meanings: dict[str, str] = {}
    field = None
    for line in doc.splitlines():
        start = re.match(r"(\w+): +(\S.*)", line)
        if start:
            field = start[1]
            meanings[field] = start[2]
        elif field is not None and line.startswith(" "):
            meanings[field] += f" {line.strip()}"
        elif line.strip() or field is None:
            field = None
            prose.append(line)
    return "\n".join(prose).strip(), meanings


def _try(method: type[Method]) -> tuple[str, bool | None]:
    """The ports that a method uses and whether it merges, found by attaching it to small models."""
    for model in _small_models():
        try:
            handle = attach(model, make_method(method.__name__, {}), prepared={0: {}})
        except InlayError:
            continue
        try:
            ports = " + ".join(sorted({port_for(placed.piece).label for placed in handle.placed}))
            try:
                return ports, bool(plan(model, handle.spec, handle.placed))
            except MergeError:
                return ports, False
        finally:
            handle.detach()
    return "", None


@cache
def _small_models() -> tuple[PreTrainedModel, ...]:
    """An encoder and an encoder–decoder with random weights, which together have every role."""
    blocks: dict[str, Any] = {"vocab_size": 99, "num_hidden_layers": 2, "num_attention_heads": 2}
    widths: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64}
    bart: dict[str, Any] = {"vocab_size": 99, "d_model": 64}
    for stack in ("encoder", "decoder"):
        bart |= {f"{stack}_layers": 2, f"{stack}_attention_heads": 2, f"{stack}_ffn_dim": 64}
    with torch.random.fork_rng(devices=[]):
        encoder = BertModel(BertConfig(**blocks, **widths))
        encoder_decoder = BartModel(BartConfig(**bart))
    return encoder.eval(), encoder_decoder.eval()
