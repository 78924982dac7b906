"""Laws about the function that is computed: at the start, merged, dropped, token by token."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay.core.piece import Foldable
from inlay.errors import MergeError
from inlay.handle import attach, attached, load, rows
from inlay.laws.case import (
    Broken,
    Case,
    NotApplicable,
    answer,
    counted,
    join,
    near,
    paddings,
    readable,
)
from inlay.merge import plan


def identity(case: Case) -> float:
    """A model with the method just attached computes exactly what the base does."""
    if not all(method.identity for method in case.spec.methods):
        raise NotApplicable("the method does not promise it")
    inputs = join(case.inputs(2))
    with case.quiet(), torch.no_grad():
        base = answer(case.model, inputs)
        handle = attach(case.model, case.spec, name="law")
        try:
            with rows(case.model, ["law"]):
                return near(case, answer(case.model, inputs), base, "attached against base")
        finally:
            handle.detach()


def dropped(case: Case) -> float:
    """Dropping what only training needs changes nothing."""
    if case.spec.exported() == case.spec:
        raise NotApplicable("the method drops nothing")
    inputs = join(case.inputs(2))
    with case.quiet(), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder, "law.safetensors")
        with case.inlay() as handle:
            whole = answer(case.model, inputs)
            handle.save(path)
        left = load(case.model, path)
        try:
            with rows(case.model, [left.name]):
                return near(case, answer(case.model, inputs), whole, "without what was dropped")
        finally:
            left.detach()


def merging(case: Case) -> float:
    """Merged is the same function; what cannot be merged is refused before the first write."""
    inputs = join(case.inputs(2))
    with case.quiet(), torch.no_grad():
        before = {name: p.clone() for name, p in case.model.named_parameters()}
        with case.inlay() as handle:
            foldable = all(isinstance(p.piece, Foldable) for p in handle.placed)
            unmerged = answer(case.model, inputs)
            try:
                writes = plan(case.model, handle.spec, handle.placed)
            except MergeError as refusal:
                if foldable and "bias" not in str(refusal) and "shares" not in str(refusal):
                    raise Broken(f"refused: {refusal}") from None
                for name, p in case.model.named_parameters():
                    if name in before and not torch.equal(p, before[name]):
                        raise Broken(f"refused, but {name} was written") from None
                raise NotApplicable(f"refused as it should be: {refusal}") from None
            if not foldable:
                raise Broken("a piece without fold was merged")
            old = [(parameter, parameter.detach().clone()) for parameter, _ in writes]
            try:
                if attached(case.model).keys() == {handle.name}:
                    handle.merge()
                else:
                    for parameter, value in writes:
                        parameter.copy_(value)
                    handle.enabled = False
                return near(case, answer(case.model, inputs), unmerged, "merged", 3)
            finally:
                for parameter, value in old:
                    parameter.data.copy_(value)


def generation(case: Case) -> float:
    """Generating with a cache, without, and reading the same tokens at once all agree."""
    model: Any = case.model
    chart = case.chart
    if not model.can_generate() or chart.kind not in ("decoder", "encoder-decoder"):
        raise NotApplicable("this base does not generate")
    if case.tolerance > 1e-3:
        raise NotApplicable("in 16 bits rounding alone changes tokens and beams; check in fp32")
    singles = [{k: v for k, v in s.items() if k != "decoder_input_ids"} for s in case.inputs(3)]
    names = ["law", None, "law-b"]
    new = 4
    options: dict[str, Any] = {
        "max_new_tokens": new,
        "min_new_tokens": new,
        "do_sample": False,
        "pad_token_id": 0,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    worst = 0.0
    with case.quiet():
        ways = dict(paddings(case, singles_for(case, singles)))
    side = "left" if "left" in ways else "right"
    with case.quiet(), case.inlay(), case.inlay("law-b", seed=5), torch.no_grad():
        if chart.kind == "decoder" and side == "right":
            singles, names = [singles[0]] * 3, names
        batch = join(singles, side)
        with rows(model, names):
            batch = readable(model, batch)
            made = model.generate(**batch, **options)
            tokens, logits = made.sequences, torch.stack(made.logits, 1).float()
            without = model.generate(**batch, **options, use_cache=False)
            plain = torch.stack(without.logits, 1).float()
            if torch.equal(without.sequences, tokens):
                worst = near(case, plain, logits, "without a cache", 3)
            else:
                raise Broken("other tokens without a cache")
            forced = _forced(case, batch, tokens, side, new)
            worst = max(worst, near(case, forced, logits, "read at once", 3))
            beams = model.generate(**batch, **{**options, "num_beams": 3})
        for i, (name, single) in enumerate(zip(names, singles, strict=True)):
            with rows(model, [name]):
                single = readable(model, single)
                alone = model.generate(**single, **options)
                searched = model.generate(**single, **{**options, "num_beams": 3})
            if not torch.equal(alone.sequences[0, -new:], tokens[i, -new:]):
                raise Broken(f"row {i} ({name}) writes other tokens alone than in the batch")
            if not torch.equal(searched.sequences[0, -new:], beams.sequences[i, -new:]):
                raise Broken(f"row {i} ({name}) finds other beams alone than in the batch")
    return worst


def singles_for(case: Case, singles: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Rows for a plain forward of a base that generates."""
    if case.chart.kind != "encoder-decoder":
        return singles
    targets = case.inputs(len(singles))
    pairs = zip(singles, targets, strict=True)
    return [{**s, "decoder_input_ids": t["decoder_input_ids"]} for s, t in pairs]


def _forced(case: Case, batch: dict[str, Tensor], tokens: Tensor, side: str, new: int) -> Tensor:
    if case.chart.kind == "encoder-decoder":
        out = answer(case.model, {**batch, "decoder_input_ids": tokens[:, :-1]})
        return out[:, -new:]
    grown = torch.nn.functional.pad(batch["attention_mask"], (0, new - 1), value=1)
    whole = {"input_ids": tokens[:, :-1], "attention_mask": grown}
    if side == "left" and case.chart.stacks[0].takes("position_ids"):
        whole = counted(case, whole)
    return answer(case.model, whole)[:, -new:]
