"""T5 and mT5: pre-norm encoder–decoder with relative positions and no biases."""

from typing import Any

from torch import Tensor

from inlay.architectures.layout import Family, Layout, Place, Sub
from inlay.architectures.logits import output_embeddings

ATTENTION: dict[str, Place] = {
    "attn": Sub("layer.0.layer_norm", "layer.0.dropout"),
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "norm.attn": "layer.0.layer_norm",
}
CROSS: dict[str, Place] = {
    "cross": Sub("layer.1.layer_norm", "layer.1.dropout"),
    "cross.q": "layer.1.EncDecAttention.q",
    "cross.k": "layer.1.EncDecAttention.k",
    "cross.v": "layer.1.EncDecAttention.v",
    "cross.o": "layer.1.EncDecAttention.o",
    "norm.cross": "layer.1.layer_norm",
}


def feed_forward(layer: int) -> dict[str, Place]:
    """The places of the feed-forward sub-layer, gated or not.

    layer: its number among the sub-layers of a block.
    """
    path = f"layer.{layer}"
    return {
        "mlp": Sub(f"{path}.layer_norm", f"{path}.dropout"),
        "mlp.gate": f"{path}.DenseReluDense.wi_0",
        "mlp.up": (f"{path}.DenseReluDense.wi_1", f"{path}.DenseReluDense.wi"),
        "mlp.down": f"{path}.DenseReluDense.wo",
        "norm.mlp": f"{path}.layer_norm",
    }


COMMON: dict[str, Any] = {
    "layers": "block",
    "embed": "embed_tokens",
    "attention": "layer.0.SelfAttention",
    "head_width": "key_value_proj_dim",
    "norms": {"norm.final": "final_layer_norm"},
}
ENCODER = Layout(
    stack="encoder",
    path="encoder",
    block={**ATTENTION, **feed_forward(1)},
    causal=False,
    **COMMON,
)
DECODER = Layout(
    stack="decoder",
    path="decoder",
    block={**ATTENTION, **CROSS, **feed_forward(2)},
    cross_attention="layer.1.EncDecAttention",
    **COMMON,
)


def t5_logits(model: Any, hidden: Tensor) -> Tensor:
    """T5's head, which scales its input where the head is the transposed embedding."""
    if model.config.scale_decoder_outputs:
        hidden = hidden * model.model_dim**-0.5
    return output_embeddings(model)(hidden)


FAMILIES = (
    Family(("t5",), (ENCODER, DECODER), logits=t5_logits),
    Family(("mt5",), (ENCODER, DECODER)),
)
