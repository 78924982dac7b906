"""Laws about what is left: in the base, in files, in copies."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from inlay.handle import attached, load, rows
from inlay.laws.case import (
    TOO_LARGE,
    Broken,
    Case,
    NotApplicable,
    answer,
    join,
    move,
)


def no_trace(case: Case) -> float:
    """After detach, everything about the base is what it was, bit for bit."""
    inputs = join(case.inputs(2))
    with case.quiet():
        before = snapshot(case.model)
        with torch.no_grad():
            base = answer(case.model, inputs)
        with case.inlay():
            answer(case.model, inputs).square().mean().backward() if case.learns else None
            if case.acts and torch.equal(answer(case.model, inputs), base):
                raise Broken("the inlay changes nothing while it is attached")
        after = snapshot(case.model)
        for key in before.keys() | after.keys():
            if before.get(key) != after.get(key):
                raise Broken(f"{key} is not what it was before")
        with torch.no_grad():
            if not torch.equal(answer(case.model, inputs), base):
                raise Broken("the outputs are not what they were before")
    return 0.0


def snapshot(model: PreTrainedModel) -> dict[str, Any]:
    """Everything about a model that must be the same again."""
    seen: dict[str, Any] = {"config": str(model.config._attn_implementation)}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        numbers = tensor.detach()
        digest = (numbers.double().sum().item(), numbers._version, numbers.data_ptr())
        seen[f"tensor {name}"] = (digest, tensor.requires_grad, tensor.grad is None)
    for name, part in model.named_modules():
        hooks = {key: len(value) for key, value in vars(part).items() if key.endswith("_hooks")}
        plain = sorted(vars(part).keys())
        config = getattr(part, "config", None)
        attention = None if config is None else config._attn_implementation
        children = list(part._modules)
        seen[f"module {name}"] = (type(part), hooks, plain, children, part.training, attention)
    return seen


def save_load(case: Case) -> float:
    """What is loaded from a file computes bit for bit what was saved."""
    inputs = join(case.inputs(2))
    with case.quiet(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "law.safetensors")
        with case.inlay() as handle:
            handle.save(path)
            saved = {name: tensor.clone() for name, tensor in handle.named_tensors().items()}
        one = load(case.model, path, name="law-one")
        try:
            for name, tensor in one.named_tensors().items():
                if not torch.equal(tensor, saved[name]):
                    raise Broken(f"{name} is not what was saved")
            with torch.no_grad(), rows(case.model, ["law-one"]):
                first = answer(case.model, inputs)
            one.save(path)
        finally:
            one.detach()
        two = load(case.model, path)
        try:
            with torch.no_grad(), rows(case.model, [two.name]):
                if not torch.equal(answer(case.model, inputs), first):
                    raise Broken("the outputs after loading are not those before saving")
        finally:
            two.detach()
    return 0.0


def copies_apart(case: Case) -> float:
    """A deep or pickled copy computes the same, and nothing done to one reaches the other."""
    if case.model.num_parameters() > TOO_LARGE:
        raise NotApplicable("the base is too large to copy")
    inputs = join(case.inputs(2))
    with case.quiet(), case.inlay() as handle, torch.no_grad():
        whole = answer(case.model, inputs)
        buffer = io.BytesIO()
        pickle.dump(case.model, buffer)
        buffer.seek(0)
        for other in (copy.deepcopy(case.model), pickle.load(buffer)):
            if not torch.equal(answer(other, inputs), whole):
                raise Broken("a copy computes something else")
            twin = attached(other)["law"]
            move(twin)
            if case.acts and torch.equal(answer(other, inputs), whole):
                raise Broken("a copy does not act through its own pieces")
            twin.detach()
            for rest in attached(other).values():
                rest.detach()
            if not torch.equal(answer(case.model, inputs), whole):
                raise Broken("what happens to a copy reaches the original")
        if not handle.attached:
            raise Broken("detaching a copy detached the original")
    return 0.0
