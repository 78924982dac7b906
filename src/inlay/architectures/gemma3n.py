"""Gemma 3n and Gemma 4: blocks with embeddings of their own for every token.

Positions without ids, such as prompts, get what the families give images and sound there. The
blocks of Gemma 3n hand on several streams of hidden states.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from inlay.architectures.layout import Experts, Family
from inlay.architectures.llama import GEMMA2, capped_logits


def per_layer_inputs(stack: Any, ids: Tensor) -> dict[str, Tensor]:
    """Every layer's embeddings of ids `[B, T]`; those of the padding id for ids without any."""
    config = stack.config
    if not config.hidden_size_per_layer_input:  # in Gemma 4 not every model has them
        return {}
    known = ids < min(config.vocab_size, config.vocab_size_per_layer_input)
    ids = torch.where(known, ids, config.pad_token_id or 0)
    return {"per_layer_inputs": stack.get_per_layer_inputs(ids)}


GEMMA3N = replace(GEMMA2, streams=True, beside_ids=per_layer_inputs)
GEMMA4 = replace(
    GEMMA2,
    beside_ids=per_layer_inputs,
    block={
        **GEMMA2.block,
        "mlp.router": "router.proj",
        "mlp.experts.gate": Experts("experts", "gate_up_proj", 0, 2),
        "mlp.experts.up": Experts("experts", "gate_up_proj", 1, 2),
        "mlp.experts.down": Experts("experts", "down_proj"),
    },
)

FAMILIES = (
    Family(("gemma3n_text",), (GEMMA3N,), logits=capped_logits),
    Family(("gemma4_text",), (GEMMA4,), logits=capped_logits),
)
