"""One training step: ours, peft's, and the least that any step must do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import peft
import torch
from torch import Tensor, nn

import inlay
from bench.base import DTYPE, Batch, batch, model
from inlay import Houlsby, LoRA, Prefix, Prompt
from inlay.architectures.resolve import resolve
from inlay.core.method import Spec
from inlay.tasks import token_loss

Step = Callable[[], float]

LEARNING_RATE = 1e-3
OURS: dict[str, Spec] = {
    "lora": LoRA(rank=8),
    "prompt": Prompt(length=20),
    "prefix": Prefix(length=20, mlp=None),
    "houlsby": Houlsby(bottleneck=64),
}
THEIRS: dict[str, Any] = {
    "lora": peft.LoraConfig(
        task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]
    ),
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20),
    "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20),
}
"""peft's nearest equivalents. It has no Houlsby adapter."""


def ours(name: str, dtype: torch.dtype = DTYPE) -> Step:
    """A step with our pieces: backbone, head on labelled positions, backward, AdamW."""
    base, rows = model(dtype), batch()
    handle = inlay.attach(base, OURS[name])
    chart = handle.chart
    return _step(lambda: _loss(chart, base, rows), list(handle.parameters()))


def theirs(name: str, dtype: torch.dtype = DTYPE, *, narrow: bool = False) -> Step:
    """peft's step, as transformers.Trainer takes it.

    narrow: adapter weights in the base's dtype, instead of peft's default fp32.
    """
    rows = batch()
    base = peft.get_peft_model(model(dtype), THEIRS[name], autocast_adapter_dtype=not narrow)
    inputs = {"input_ids": rows.ids, "attention_mask": rows.mask, "labels": rows.labels}
    return _step(lambda: base(**inputs).loss, [p for p in base.parameters() if p.requires_grad])


def limit(dtype: torch.dtype = DTYPE) -> Step:
    """The least that any method at the query projections must do; nothing is adapted.

    Forward, head on labelled positions, and gradients of activations down to the first query
    projection.
    """
    base, rows = model(dtype).requires_grad_(False), batch()
    chart = resolve(base)
    first = next(site.host for site in chart.sites if site.role == "attn.q")
    leaf = torch.zeros(1, dtype=base.dtype, device=base.device, requires_grad=True)

    def add(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return output + leaf

    first.register_forward_hook(add)

    def step() -> float:
        loss = _loss(chart, base, rows)
        loss.backward()
        leaf.grad = None
        return loss.item()

    return step


def _loss(chart: Any, base: Any, rows: Batch) -> Tensor:
    hidden = chart.last_hidden_state(base, input_ids=rows.ids, attention_mask=rows.mask)
    hidden = hidden.flatten(0, 1).index_select(0, rows.positions)
    return token_loss(chart, base, hidden, rows.targets) / len(rows.targets)


def _step(compute_loss: Callable[[], Tensor], parameters: Iterable[nn.Parameter]) -> Step:
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)

    def step() -> float:
        loss = compute_loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step
