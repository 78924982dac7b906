"""BERT, RoBERTa, ELECTRA: post-norm encoders (or decoders, where the config says so)."""

from typing import Any

from torch import Tensor

from inlay.architectures.layout import Family, Layout, Sub, output_head

BERT = Layout(
    stack="encoder",
    path="",
    layers="encoder.layer",
    embed="embeddings.word_embeddings",
    core="attention.self",
    width="attention_head_size",
    causal=False,
    first_stays=True,
    closing="output.LayerNorm",
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
    """BERT's masked-language head: a transform in front of the decoder."""
    output_head(model)
    return model.cls.predictions(hidden)


def roberta_logits(model: Any, hidden: Tensor) -> Tensor:
    """RoBERTa's masked-language head."""
    output_head(model)
    return model.lm_head(hidden)


def electra_logits(model: Any, hidden: Tensor) -> Tensor:
    """The head of ELECTRA's generator."""
    return output_head(model)(model.generator_predictions(hidden))


def behind_padding(config: Any) -> int:
    """RoBERTa counts positions from the one after the padding id."""
    return config.pad_token_id + 1


CHARTS = (
    Family(("bert",), (BERT,), logits=bert_logits, plain_head=False, absolute=True),
    Family(
        ("roberta",),
        (BERT,),
        logits=roberta_logits,
        plain_head=False,
        position_start=behind_padding,
        absolute=True,
    ),
    Family(("electra",), (BERT,), logits=electra_logits, plain_head=False, absolute=True),
)
