"""One class of transformers under every method: what runs, what is refused, what crashes."""

from __future__ import annotations

import re
import tempfile
import traceback
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from transformers import PreTrainedConfig, PreTrainedModel

import inlay
from inlay.architectures.resolve import resolve
from inlay.core.method import METHODS, Method
from inlay.errors import InlayError
from tests.every.inputs import Inputs, floating, working_inputs
from tests.every.tiny import tiny_configs, tiny_model

PATH = re.compile(r"(?<![\w<])/(?:[\w.@+-]+/)+[\w.@+-]*")
"""The path of a file, which differs from machine to machine."""

SAVED = 3
"""One in so many of the specs is saved and loaded, on each class others."""

Run = tuple[PreTrainedModel, Inputs]
"""A model, or a part of it, and inputs that it runs on."""


@dataclass
class Findings:
    """What one class does.

    built: whether a tiny random model can be made. runs: whether inputs for it were found.
    works: the specs that attach (and run and learn, where there are inputs). refused: spec -> our
    message. late: spec -> our message where it came after `attach` only. crashed: spec -> the
    exception that is not ours. base_fails: spec -> the exception that the bare base ends in too.
    """

    name: str
    kind: str = ""
    built: bool = False
    runs: bool = False
    note: str = ""
    stacks: dict[str, int] = field(default_factory=dict)
    works: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)
    crashed: dict[str, str] = field(default_factory=dict)
    base_fails: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def of(self, specs: Collection[str]) -> Findings:
        """The same, with what was found of these specs alone."""
        messages = {
            name: {spec: text for spec, text in vars(self)[name].items() if spec in specs}
            for name in ("refused", "late", "crashed", "base_fails")
        }
        works = [spec for spec in self.works if spec in specs]
        return replace(self, works=works, **messages)

    @property
    def specs(self) -> set[str]:
        """The specs that it says something of."""
        return {*self.works, *self.refused, *self.late, *self.crashed, *self.base_fails}


def examples() -> list[tuple[Method, bool]]:
    """Every tiny example of every method of the library, and whether it is the method's first."""
    own = [kind for kind in METHODS.values() if kind.__module__.startswith("inlay.")]
    return [(example, example is kind.examples[0]) for kind in own for example in kind.examples]


def examine(
    model_class: type[PreTrainedModel],
    config_class: type[PreTrainedConfig],
    known: Findings | None = None,
) -> Findings:
    """Attach every method to a tiny random model of a class.

    Every example is attached; a method's first one runs and learns too (the others differ from it
    in numbers and places), and on a third of the classes it is saved and loaded.

    known: what was found before; what it says of a spec stays.
    """
    findings = known or Findings(model_class.__name__)
    model, inputs = _build(model_class, config_class, findings)
    if model is None:
        return findings
    findings.built, findings.runs = True, inputs is not None
    try:
        chart = resolve(model)
        findings.kind = chart.kind
        findings.stacks = {stack.name: len(stack.layers) for stack in chart.stacks}
    except InlayError:
        pass
    except Exception as error:
        findings.note = _where(error)
    runs = [] if inputs is None else [(model, inputs)]
    runs += _towers(model)
    turn = crc32(findings.name.encode())
    todo = [(spec, first) for spec, first in examples() if repr(spec) not in findings.specs]
    for number, (spec, is_first) in enumerate(todo):
        saves = is_first and (number + turn) % SAVED == 0
        try_spec(model, spec, findings, runs if is_first else [], saves=saves)
    return findings


def _towers(model: PreTrainedModel) -> list[Run]:
    """The stacks that read images or sound, which a base with text may not run."""
    try:
        stacks = resolve(model).stacks[1:]
    except Exception:
        return []
    parts = [s.module for s in stacks if s.reads in ("images", "audio")]
    models = [part for part in parts if isinstance(part, PreTrainedModel)]
    runs = ((part, working_inputs(part)) for part in models)
    return [(part, inputs) for part, inputs in runs if inputs is not None]


def _build(
    model_class: type[PreTrainedModel], config_class: type[PreTrainedConfig], findings: Findings
) -> tuple[PreTrainedModel | None, Inputs | None]:
    """The smallest model that inputs are found for; else the smallest that can be made."""
    first = None
    try:
        for config in tiny_configs(config_class):
            try:
                model = tiny_model(model_class, config)
            except Exception as error:
                findings.note = short(error)
                continue
            inputs = working_inputs(model)
            if inputs is not None:
                findings.note = ""
                return model, inputs
            first = first or model
    except Exception as error:
        findings.note = f"no config: {short(error)}"
    return first, None


def try_spec(
    model: PreTrainedModel, spec: Method, findings: Findings, runs: list[Run], *, saves: bool
) -> None:
    """Attach a spec, run and learn on every run, and save and load it if asked."""
    text, stage, bare_error = repr(spec), findings.refused, None
    try:
        handle = inlay.attach(model, spec, prepared={0: {}, 1: {}, 2: {}, 3: {}})
        try:
            stage = findings.late
            for module, inputs in runs:
                bare_error = partial(_bare_error, module, inputs)
                _run(module, inputs, handle)
            bare_error = None
            if saves:
                _round_trip(model, handle)
        finally:
            if handle.attached:
                handle.detach()
        findings.works.append(text)
    except InlayError as error:
        stage[text] = PATH.sub("…", str(error))
    except Exception as error:
        alone = bare_error is not None and bare_error()
        (findings.base_fails if alone == short(error) else findings.crashed)[text] = _where(error)
    for leftover in inlay.attached(model).values():
        leftover.detach()


def _bare_error(module: PreTrainedModel, inputs: Inputs) -> str | None:
    """What the base alone ends in, running and learning; None where it does not fail."""
    try:
        _learn(module, inputs)
    except Exception as error:
        return short(error)
    finally:
        module.zero_grad()
    return None


def _run(module: PreTrainedModel, inputs: Inputs, handle: inlay.Inlay) -> None:
    """One forward and backward pass, with the handle's virtual tokens in the text."""
    ids = inputs.get("input_ids")
    if ids is not None and handle.virtual_tokens:
        ids = ids.clone()
        count = min(handle.virtual_tokens, ids.shape[1])
        ids[:, :count] = handle.first_virtual_id + torch.arange(count)
        inputs = {**inputs, "input_ids": ids}
    _learn(module, inputs)
    for parameter in handle.parameters():
        parameter.grad = None


def _learn(module: PreTrainedModel, inputs: Inputs) -> None:
    """One forward pass, and a backward pass where something learns."""
    outputs = floating(module(**inputs))
    loss = sum(output.float().sum() for output in outputs if output.requires_grad)
    if isinstance(loss, torch.Tensor):
        loss.backward()


def _round_trip(model: PreTrainedModel, handle: inlay.Inlay) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = handle.save(Path(folder) / "one.safetensors")
        handle.detach()
        inlay.load(model, path).detach()


def _where(error: Exception) -> str:
    """An exception with the last place of ours that it came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/inlay/" in f.filename]
    place = ""
    if frames:
        file = frames[-1].filename.rpartition("/inlay/")[2]
        place = f" [{file}:{frames[-1].name}]"
    return f"{short(error)}{place}"


def short(error: Exception) -> str:
    """The beginning of an exception's message, on one line and without paths of this machine."""
    text = re.sub(r"\s+", " ", str(error))
    return f"{type(error).__name__}: {PATH.sub('…', text)[:160]}"


def message_kind(message: str) -> str:
    """A message without what differs from base to base."""
    message = re.sub(r"; use .*", "; use …", message)
    message = re.sub(r"'[^']*'(,? (or )?'[^']*')*", "'…'", message)
    message = re.sub(rf"\b({'|'.join(METHODS)})\b", "Method", message)
    message = re.sub(r"\b\w*(?:Model|For[A-Z]\w+|Attention\w*|PreTrained\w*)\b", "Base", message)
    message = re.sub(r"(known|has): [\w., ]+", r"\1: …", message)
    message = re.sub(r"\d+", "N", message)
    return message[:200]
