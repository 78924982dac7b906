"""BERT, RoBERTa, ELECTRA: post-norm encoders (or decoders, where the config says so)."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from inlay.architectures.layout import Family, Layout, Sub
from inlay.architectures.logits import output_embeddings

BERT = Layout(
    stack="encoder",
    path="",
    layers="encoder.layer",
    embed="embeddings.word_embeddings",
    attention="attention.self",
    head_width="attention_head_size",
    causal=False,
    keeps_first=True,
    closing_norm="output.LayerNorm",
    block={
        "attn": Sub("attention", "attention.output.dropout"),
        "attn.q": "attention.self.query",
        "attn.k": "attention.self.key",
        "attn.v": "attention.self.value",
        "attn.o": "attention.output.dense",
        "mlp": Sub("intermediate", "output.dropout"),
        "mlp.up": "intermediate.dense",
        "mlp.down": "output.dense",
        "norm.attn": "attention.output.LayerNorm",
        "norm.mlp": "output.LayerNorm",
    },
    norms={"norm.embed": "embeddings.LayerNorm"},
)


def bert_logits(model: Any, hidden: Tensor) -> Tensor:
    """BERT's masked-language head: a transform before the output embeddings."""
    output_embeddings(model)
    return model.cls.predictions(hidden)


def roberta_logits(model: Any, hidden: Tensor) -> Tensor:
    """RoBERTa's masked-language head: `[..., D] -> [..., V]`."""
    output_embeddings(model)
    return model.lm_head(hidden)


def electra_logits(model: Any, hidden: Tensor) -> Tensor:
    """The head of ELECTRA's generator: `[..., D] -> [..., V]`."""
    return output_embeddings(model)(model.generator_predictions(hidden))


def after_padding_id(config: PreTrainedConfig) -> int:
    """RoBERTa's position ids start after the padding id."""
    return config.pad_token_id + 1


FAMILIES = (
    Family(("bert",), (BERT,), logits=bert_logits, linear_head=False, position_table=True),
    Family(
        ("roberta",),
        (BERT,),
        logits=roberta_logits,
        linear_head=False,
        position_start=after_padding_id,
        position_table=True,
    ),
    Family(("electra",), (BERT,), logits=electra_logits, linear_head=False, position_table=True),
)
