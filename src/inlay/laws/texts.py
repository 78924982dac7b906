"""Laws about where texts begin and end: several in one row, and one in several passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput

from inlay.errors import PortError, RowsError
from inlay.laws.batches import Inputs, without_unserved_virtual_tokens
from inlay.laws.case import Broken, Case, NotApplicable
from inlay.laws.compare import model_output, require_close

ORDERS = ((0, 1, 2), (0, 2, 1))
"""Which texts stand in the two packed rows. Both begin with the same one."""


def packed_rows_are_rows_alone(case: Case) -> float:
    """Several texts in one row, with positions that begin anew, compute what each does alone."""
    stack = case.chart.stacks[0]
    if case.chart.kind != "decoder" or not stack.takes("position_ids"):
        raise NotApplicable("only a causal model that is given positions reads packed rows")
    singles = case.inputs(3)
    packed = _packed(singles, stack.position_start)
    alone: dict[str | None, list[Tensor]] = {}
    worst = 0.0
    with case.isolated(), case.learner(), torch.no_grad():
        for names in (["law", "law"], ["law", None]):
            try:
                with case.serving(names):
                    output = model_output(case.model, packed)
            except (PortError, RowsError) as refusal:
                raise NotApplicable(f"refused as it should be: {refusal}") from None
            for row, (name, order) in enumerate(zip(names, ORDERS, strict=True)):
                if name not in alone:
                    with case.serving([name]):
                        alone[name] = [model_output(case.model, single) for single in singles]
                expected = torch.cat([alone[name][number] for number in order], 1)
                what = f"packed row {row} ({name})"
                worst = max(worst, require_close(case, output[row : row + 1], expected, what, 3))
    return worst


def _packed(singles: list[Inputs], first: int) -> Inputs:
    positions = [torch.arange(s["input_ids"].shape[1])[None] + first for s in singles]
    device = singles[0]["input_ids"].device
    return {
        "input_ids": torch.cat(
            [torch.cat([singles[n]["input_ids"] for n in o], 1) for o in ORDERS]
        ),
        "position_ids": torch.cat([torch.cat([positions[n] for n in o], 1) for o in ORDERS]).to(
            device
        ),
        "use_cache": False,  # type: ignore[dict-item]
    }


def continued_cache_is_one_pass(case: Case) -> float:
    """A text that is read in two passes computes what it does in one, by whatever one counts.

    Callers count the tokens that were read by the cache, and make positions and masks from that.
    """
    stack = case.chart.stacks[-1]
    if case.chart.kind not in ("decoder", "encoder-decoder") or not stack.takes("past_key_values"):
        raise NotApplicable("this base has no cache of keys and values")
    first, second = case.inputs(1)[0], case.inputs(1, seed=2)[0]
    batch = {key: torch.cat((first[key], second[key])) for key in first}
    worst = 0.0
    with case.isolated(), case.learner(), torch.no_grad(), case.serving(["law", None]):
        batch = without_unserved_virtual_tokens(case.model, batch)
        try:
            whole = model_output(case.model, {**batch, "use_cache": False})  # type: ignore[dict-item]
            for counted in ((), ("positions", "mask")):
                output = _in_two_passes(case, batch, counted)
                what = f"in two passes, with {' and '.join(counted) or 'nothing'} counted"
                worst = max(worst, require_close(case, output, whole, what, 3))
        except (PortError, RowsError) as refusal:
            raise NotApplicable(f"refused as it should be: {refusal}") from None
    return worst


def _in_two_passes(case: Case, batch: Inputs, counted: tuple[str, ...]) -> Tensor:
    """What the model computes of a batch that it reads in two halves."""
    model: Any = case.model
    side = "decoder_" if case.chart.kind == "encoder-decoder" else ""
    ids = batch[f"{side}input_ids"]
    half = ids.shape[1] // 2
    source = {key: batch[key] for key in ("input_ids", "attention_mask")} if side else {}
    begun = model(**source, **{f"{side}input_ids": ids[:, :half]}, use_cache=True)
    cache = begun.get("past_key_values")
    if not isinstance(cache, Cache):
        raise NotApplicable("this base returns no cache")
    seen = cache.get_seq_length()
    if seen != half:
        raise Broken(f"the cache says that it holds {seen} tokens of {half}")
    rest: dict[str, Any] = {f"{side}input_ids": ids[:, half:], "past_key_values": cache}
    if side:
        states = BaseModelOutput(last_hidden_state=begun.encoder_last_hidden_state)
        rest |= {"encoder_outputs": states, "attention_mask": batch["attention_mask"]}
    elif "positions" in counted and case.chart.stacks[0].takes("position_ids"):
        positions = torch.arange(seen, ids.shape[1], device=ids.device)[None]
        rest["position_ids"] = positions + case.chart.stacks[0].position_start
    if "mask" in counted:
        rest[f"{side}attention_mask"] = torch.ones_like(ids[:, : seen + ids.shape[1] - half])
    finished = model(**rest, use_cache=True)
    return torch.cat([_numbers(begun), _numbers(finished)], 1).float()


def _numbers(output: Any) -> Tensor:
    logits: Tensor | None = output.get("logits")
    return output.last_hidden_state if logits is None else logits
