"""Llama and its kin: Mistral, Qwen, Phi-3 (fused projections), Gemma (norms after sub-layers)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from inlay.architectures.layout import Family, Fused, Layout, Sub
from inlay.architectures.logits import output_embeddings

LLAMA = Layout(
    stack="decoder",
    path="",
    layers="layers",
    embed="embed_tokens",
    attention="self_attn",
    block={
        "attn": Sub("input_layernorm", "self_attn.o_proj"),
        "attn.q": "self_attn.q_proj",
        "attn.k": "self_attn.k_proj",
        "attn.v": "self_attn.v_proj",
        "attn.o": "self_attn.o_proj",
        "mlp": Sub("post_attention_layernorm", "mlp.down_proj"),
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
        "norm.attn": "input_layernorm",
        "norm.mlp": "post_attention_layernorm",
    },
    norms={"norm.final": "norm"},
)

PHI3 = replace(
    LLAMA,
    block={
        **LLAMA.block,
        "attn": Sub("input_layernorm", "resid_attn_dropout"),
        "attn.q": Fused("self_attn.qkv_proj", 0, 3, grouped=True),
        "attn.k": Fused("self_attn.qkv_proj", 1, 3, grouped=True),
        "attn.v": Fused("self_attn.qkv_proj", 2, 3, grouped=True),
        "mlp": Sub("post_attention_layernorm", "resid_mlp_dropout"),
        "mlp.gate": Fused("mlp.gate_up_proj", 0, 2),
        "mlp.up": Fused("mlp.gate_up_proj", 1, 2),
    },
)

GEMMA2 = replace(
    LLAMA,
    block={
        **LLAMA.block,
        "attn": Sub("input_layernorm", "post_attention_layernorm"),
        "mlp": Sub("pre_feedforward_layernorm", "post_feedforward_layernorm"),
        "norm.mlp": "pre_feedforward_layernorm",
    },
)


def capped_logits(model: Any, hidden: Tensor) -> Tensor:
    """Gemma's head: a soft cap `c · tanh(logits / c)` where the config has one."""
    logits = output_embeddings(model)(hidden)
    cap = model.config.final_logit_softcapping
    return logits if cap is None else torch.tanh(logits / cap) * cap


FAMILIES = (
    Family(("llama", "mistral", "qwen2", "qwen3"), (LLAMA,), shares_prefix=True),
    Family(("phi3",), (PHI3,), shares_prefix=True),
    Family(("gemma2", "gemma3_text"), (GEMMA2,), logits=capped_logits, shares_prefix=True),
)
