"""Laws about what remains: in the base, in files, in copies."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from inlay.handle import Inlay, attached, load, rows
from inlay.laws.batches import pad_batch
from inlay.laws.case import TOO_LARGE, Broken, Case, NotApplicable, perturb
from inlay.laws.compare import model_output


def detach_leaves_no_trace(case: Case) -> float:
    """After detach, everything about the base is what it was, bit for bit."""
    inputs = pad_batch(case.inputs(2))
    with case.isolated():
        with torch.no_grad():  # in its first pass transformers itself puts hooks on some bases
            base = model_output(case.model, inputs)
        before = snapshot(case.model)
        with case.inlay():
            if case.changes_outputs:
                model_output(case.model, inputs).square().mean().backward()
                if torch.equal(model_output(case.model, inputs), base):
                    raise Broken("the inlay changes nothing while it is attached")
        after = snapshot(case.model)
        for key in before.keys() | after.keys():
            if before.get(key) != after.get(key):
                raise Broken(f"{key} is not what it was before")
        with torch.no_grad():
            if not torch.equal(model_output(case.model, inputs), base):
                raise Broken("the outputs are not what they were before")
    return 0.0


def snapshot(model: PreTrainedModel) -> dict[str, Any]:
    """Everything about a model that detach must restore, by a name for messages."""
    state: dict[str, Any] = {"config": str(model.config._attn_implementation)}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        values = tensor.detach()
        digest = (values.double().sum().item(), values._version, values.data_ptr())
        state[f"tensor {name}"] = (digest, tensor.requires_grad, tensor.grad is None)
    for name, part in model.named_modules():
        hooks = {key: len(value) for key, value in vars(part).items() if key.endswith("_hooks")}
        attributes = sorted(vars(part).keys())
        config = vars(part).get("config")
        attention = None if config is None else config._attn_implementation
        children = list(part._modules)
        state[f"module {name}"] = (
            type(part), hooks, attributes, children, part.training, attention,
        )  # fmt: skip
    return state


def file_restores_inlay(case: Case) -> float:
    """What is loaded from a file computes bit for bit what was saved."""
    inputs = pad_batch(case.inputs(2))
    with case.isolated(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "law.safetensors")
        with case.inlay() as handle:
            handle.save(path)
            saved = {name: tensor.clone() for name, tensor in handle.named_tensors().items()}
        loaded = load(case.model, path, name="law-loaded")
        try:
            for name, tensor in loaded.named_tensors().items():
                if not torch.equal(tensor, saved[name]):
                    raise Broken(f"{name} is not what was saved")
            with torch.no_grad(), rows(case.model, [loaded.name]):
                output = model_output(case.model, inputs)
            loaded.save(path)
        finally:
            loaded.detach()
        again = load(case.model, path)
        try:
            with torch.no_grad(), rows(case.model, [again.name]):
                if not torch.equal(model_output(case.model, inputs), output):
                    raise Broken("the outputs after loading are not those before saving")
        finally:
            again.detach()
    return 0.0


def copies_are_independent(case: Case) -> float:
    """A deep or pickled copy computes the same, and nothing done to one reaches the other."""
    if case.model.num_parameters() > TOO_LARGE:
        raise NotApplicable("the base is too large to copy")
    inputs = pad_batch(case.inputs(2))
    with case.isolated(), torch.no_grad():
        model_output(case.model, inputs)  # some bases put on hooks of their own in their first pass
        pickles = _pickled(case.model) is not None
    with case.isolated(), case.learner() as handle, torch.no_grad():
        output = model_output(case.model, inputs)
        pickled = _pickled(case.model)
        if pickles and pickled is None:
            raise Broken("the base can be pickled, and not with an inlay")
        twins = [copy.deepcopy(case.model), *([] if pickled is None else [pickle.loads(pickled)])]
        for twin in twins:
            if not torch.equal(model_output(twin, inputs), output):
                raise Broken("a copy computes something else")
            if case.bare:
                continue
            handles = attached(twin)
            perturb(handles["law"])
            if case.changes_outputs and torch.equal(model_output(twin, inputs), output):
                raise Broken("a copy does not act through its own pieces")
            for copied in handles.values():
                copied.detach()
            if not torch.equal(model_output(case.model, inputs), output):
                raise Broken("what happens to a copy reaches the original")
        if isinstance(handle, Inlay) and not handle.attached:
            raise Broken("detaching a copy detached the original")
    return 0.0


def _pickled(model: PreTrainedModel) -> bytes | None:
    """A model as bytes; None for one that cannot be pickled."""
    buffer = io.BytesIO()
    try:
        pickle.dump(model, buffer)
    except Exception:  # whatever the model's own parts raise
        return None
    return buffer.getvalue()
