"""The law of generation: with a cache, without, and read at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from inlay.laws.batches import (
    Inputs,
    pad_batch,
    with_position_ids,
    without_unserved_virtual_tokens,
)
from inlay.laws.case import Broken, Case, NotApplicable
from inlay.laws.compare import model_output, require_close, valid_paddings

NEW = 4
"""How many tokens are generated."""

OPTIONS: dict[str, Any] = {
    "max_new_tokens": NEW,
    "min_new_tokens": NEW,
    "do_sample": False,
    "pad_token_id": 0,
    "return_dict_in_generate": True,
    "output_logits": True,
}


def generation_agrees(case: Case) -> float:
    """Generating with a cache, without, and reading the same tokens at once all agree.

    In a batch of rows with different inlays, each row writes what it writes alone, with beams too.
    """
    model: Any = case.model
    if not model.can_generate() or case.chart.kind not in ("decoder", "encoder-decoder"):
        raise NotApplicable("this base does not generate")
    if case.tolerance > 1e-3:
        raise NotApplicable("in 16 bits rounding alone changes tokens and beams; check in fp32")
    with case.isolated():
        side, singles = _singles(case)
    names: list[str | None] = ["law", None, "law-b"]
    with case.isolated(), case.learner(), case.learner("law-b", seed=5), torch.no_grad():
        batch = pad_batch(singles, side)
        with case.serving(names):
            batch = without_unserved_virtual_tokens(model, batch)
            generated = model.generate(**batch, **OPTIONS)
            tokens, logits = generated.sequences, torch.stack(generated.logits, 1).float()
            uncached = model.generate(**batch, **OPTIONS, use_cache=False)
            if not torch.equal(uncached.sequences, tokens):
                raise Broken("other tokens without a cache")
            uncached_logits = torch.stack(uncached.logits, 1).float()
            worst = require_close(case, uncached_logits, logits, "without a cache", 3)
            at_once = _read_at_once(case, batch, tokens, side)
            worst = max(worst, require_close(case, at_once, logits, "read at once", 3))
            beams = model.generate(**batch, **{**OPTIONS, "num_beams": 3})
        for number, (name, single) in enumerate(zip(names, singles, strict=True)):
            row = f"row {number} ({name})"
            with case.serving([name]):
                single = without_unserved_virtual_tokens(model, single)
                alone = model.generate(**single, **OPTIONS)
                searched = model.generate(**single, **{**OPTIONS, "num_beams": 3})
            if not torch.equal(alone.sequences[0, -NEW:], tokens[number, -NEW:]):
                raise Broken(f"{row} writes other tokens alone than in the batch")
            if not torch.equal(searched.sequences[0, -NEW:], beams.sequences[number, -NEW:]):
                raise Broken(f"{row} finds other beams alone than in the batch")
    return worst


def rows_to_continue(case: Case) -> Inputs:
    """A batch of three rows as `generate` takes it, with padding where the base allows it."""
    side, singles = _singles(case)
    return pad_batch(singles, side)


def _singles(case: Case) -> tuple[str, list[Inputs]]:
    """The side to pad on, and three rows, of equal length where a decoder is padded right."""
    inputs = case.inputs(3)
    sides = dict(valid_paddings(case, inputs))
    side = "left" if "left" in sides else "right"
    singles = [{k: v for k, v in row.items() if k != "decoder_input_ids"} for row in inputs]
    equal = case.chart.kind == "decoder" and side == "right"
    return side, [singles[0]] * 3 if equal else singles


def _read_at_once(case: Case, batch: Inputs, tokens: Tensor, side: str) -> Tensor:
    """The logits of the generated tokens when all are given: `[B, NEW, V]`."""
    if case.chart.kind == "encoder-decoder":
        output = model_output(case.model, {**batch, "decoder_input_ids": tokens[:, :-1]})
        return output[:, -NEW:]
    mask = F.pad(batch["attention_mask"], (0, NEW - 1), value=1)
    inputs = {**batch, "input_ids": tokens[:, :-1], "attention_mask": mask}
    if side == "left" and case.chart.stacks[0].takes("position_ids"):
        inputs = with_position_ids(case.chart, inputs)
    return model_output(case.model, inputs)[:, -NEW:]
