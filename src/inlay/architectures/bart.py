"""BART and Marian: post-norm encoder–decoders with learned or sinusoidal positions."""

from typing import Any

from torch import Tensor

from inlay.architectures.layout import Family, Layout, Place, Sub
from inlay.architectures.logits import output_embeddings

BLOCK: dict[str, Place] = {
    "attn": Sub("self_attn", "self_attn.out_proj"),
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.out_proj",
    "mlp": Sub("fc1", "fc2"),
    "mlp.up": "fc1",
    "mlp.down": "fc2",
    "norm.attn": "self_attn_layer_norm",
    "norm.mlp": "final_layer_norm",
}
CROSS: dict[str, Place] = {
    "cross": Sub("encoder_attn", "encoder_attn.out_proj"),
    "cross.q": "encoder_attn.q_proj",
    "cross.k": "encoder_attn.k_proj",
    "cross.v": "encoder_attn.v_proj",
    "cross.o": "encoder_attn.out_proj",
    "norm.cross": "encoder_attn_layer_norm",
}
COMMON: dict[str, Any] = {
    "layers": "layers",
    "embed": "embed_tokens",
    "attention": "self_attn",
    "closing_norm": "final_layer_norm",
    "norms": {"norm.embed": "layernorm_embedding"},
}
ENCODER = Layout(stack="encoder", path="encoder", block=BLOCK, causal=False, **COMMON)
DECODER = Layout(
    stack="decoder",
    path="decoder",
    block={**BLOCK, **CROSS},
    cross_attention="encoder_attn",
    **COMMON,
)


def biased_logits(model: Any, hidden: Tensor) -> Tensor:
    """The head of BART and Marian, with its stored bias `[V]`."""
    return output_embeddings(model)(hidden) + model.final_logits_bias


FAMILIES = (
    Family(("bart", "marian"), (ENCODER, DECODER), logits=biased_logits, position_table=True),
)
