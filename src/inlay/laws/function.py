"""Laws about the function that is computed: at the start, merged, exported."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from inlay.core.method import sum_of
from inlay.core.piece import Foldable
from inlay.errors import MergeError, NoBiasError, NotFoldableError, QuantisedError, TiedWeightsError
from inlay.handle import Inlay, attach, attached, load, rows
from inlay.laws.batches import Inputs, pad_batch
from inlay.laws.case import Broken, Case, NotApplicable
from inlay.laws.compare import model_output, require_close
from inlay.merge import plan
from inlay.runtime.install import Prepared

BASE_FORBIDS = (NoBiasError, TiedWeightsError, QuantisedError)
"""Why pieces that can be folded cannot be folded into this base."""


def attached_is_base(case: Case) -> float:
    """A model with the method just attached computes exactly what the base does."""
    if not all(method.identity for method in case.spec.methods):
        raise NotApplicable("the method does not promise to start as the base")
    inputs = pad_batch(case.inputs(2))
    with case.isolated(), torch.no_grad():
        base = model_output(case.model, inputs)
        handle = attach(case.model, case.spec, name="law", prepared=case.nothing_prepared)
        try:
            with rows(case.model, ["law"]):
                output = model_output(case.model, inputs)
        finally:
            handle.detach()
    return require_close(case, output, base, "attached against base")


def export_computes_the_same(case: Case) -> float:
    """Dropping what only training needs changes nothing."""
    if case.spec.exported() == case.spec:
        raise NotApplicable("the method drops nothing")
    inputs = pad_batch(case.inputs(2))
    with case.isolated(), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder, "law.safetensors")
        with case.inlay() as handle:
            expected = model_output(case.model, inputs)
            handle.save(path)
        exported = load(case.model, path)
        try:
            with rows(case.model, [exported.name]):
                output = model_output(case.model, inputs)
        finally:
            exported.detach()
    return require_close(case, output, expected, "without what was dropped")


def merged_computes_the_same(case: Case) -> float:
    """Merged is the same function; what cannot be merged is refused before the first write."""
    inputs = pad_batch(case.inputs(2))
    with case.isolated(), torch.no_grad():
        before = {name: p.clone() for name, p in case.model.named_parameters()}
        with case.inlay() as handle:
            merged = [placed for placed in handle.placed if not placed.method.has_head]
            foldable = bool(merged) and all(isinstance(p.piece, Foldable) for p in merged)
            unmerged = model_output(case.model, inputs)
            try:
                writes = plan(case.model, handle.spec, handle.placed)
            except MergeError as refusal:
                if foldable and not isinstance(refusal, BASE_FORBIDS):
                    raise Broken(f"merging is refused, and could be done: {refusal}") from None
                if merged and not foldable and not isinstance(refusal, NotFoldableError):
                    raise Broken(f"merging is refused for a wrong reason: {refusal}") from None
                for name, parameter in case.model.named_parameters():
                    if name in before and not torch.equal(parameter, before[name]):
                        raise Broken(f"merging is refused, but {name} was written") from None
                raise NotApplicable(f"it cannot be merged, and is refused: {refusal}") from None
            if not foldable:
                raise Broken("a piece without fold was merged")
            old = [(weight, weight.detach().clone()) for weight, _ in writes]
            try:
                if attached(case.model).keys() == {handle.name}:
                    handle.merge()
                    output = model_output(case.model, inputs)
                    for head in attached(case.model).values():
                        head.detach()  # a trained head stays attached after merging
                else:
                    for weight, value in writes:
                        weight.copy_(value)
                    output = _output_with_what_remains(case, handle, inputs)
            finally:
                for weight, value in old:
                    weight.data.copy_(value)
    return require_close(case, output, unmerged, "merged", 3)


def _output_with_what_remains(case: Case, handle: Inlay, inputs: Inputs) -> Tensor:
    """What a merged base computes with the methods that merging leaves attached: trained heads.

    Some of them, such as WARP, change what the base computes too.
    """
    methods = handle.spec.methods
    heads = [index for index, method in enumerate(methods) if method.has_head]
    prepared: Prepared = {number: {} for number in range(len(heads))}
    name = f"{handle.name}-heads"
    remaining = attach(
        case.model, sum_of([methods[index] for index in heads]), name=name, prepared=prepared
    )
    try:
        remaining.copy_from(handle, dict(enumerate(heads)))
        with rows(case.model, [name]):
            return model_output(case.model, inputs)
    finally:
        remaining.detach()
