"""Tiny models, one of every family, with parameters large enough that every mistake shows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedModel

Fields = dict[str, Any]

DIMS: Fields = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}
IDS: Fields = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GQA: Fields = {**DIMS, **IDS, "num_key_value_heads": 2}
SEQ2SEQ: Fields = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    **IDS,
}
T5: Fields = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "vocab_size": 99,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
GPT2: Fields = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 99, "n_positions": 64, **IDS}
OPT: Fields = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "vocab_size": 99,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": 64,
    **IDS,
}
GEMMA: Fields = {**GQA, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
MODERNBERT: Fields = {
    **DIMS,
    **IDS,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "local_attention": 8,
    "global_attn_every_n_layers": 2,
}
TWO: Fields = {**GQA, "num_hidden_layers": 2}
EXPERTS: Fields = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT: Fields = {
    **TWO,
    **EXPERTS,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 8,
}
LINEAR: Fields = {
    **TWO,
    **EXPERTS,
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "shared_expert_intermediate_size": 24,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA2: Fields = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_heads": 8,
    "head_dim": 8,
    "state_size": 8,
    "n_groups": 2,
    "expand": 2,
    "vocab_size": 99,
    "chunk_size": 8,
    **IDS,
}
FALCON: Fields = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "ffn_hidden_size": 48,
    "max_position_embeddings": 64,
    **IDS,
}
BLOOM: Fields = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, **IDS}
PER_LAYER: Fields = {
    **GEMMA,
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "intermediate_size": [48, 48],
    "activation_sparsity_pattern": [0.0, 0.0],
    "vocab_size_per_layer_input": 99,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "laurel_rank": 4,
    "altup_num_inputs": 2,
}
CLIP_VISION: Fields = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 8,
    "patch_size": 4,
}
WHISPER: Fields = {
    **{name: size for name, size in SEQ2SEQ.items() if name != "max_position_embeddings"},
    "num_mel_bins": 8,
    "max_source_positions": 10,
    "max_target_positions": 64,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
WAV2VEC2: Fields = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (32, 32),
    "conv_stride": (10, 8),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
    "vocab_size": 20,
}
LLAVA: Fields = {"image_token_id": 98, "image_seq_length": 4, "vision_feature_layer": -1}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GQA)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GQA, head_dim=8, sliding_window=6)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GQA)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GQA, head_dim=8)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GEMMA)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**GEMMA, layer_types=MIXED)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**GQA)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT)),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**DIMS, **IDS)),
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**DIMS, **IDS)),
    "roberta": lambda: hf.RobertaForMaskedLM(
        hf.RobertaConfig(**{**DIMS, **IDS, "pad_token_id": 1})
    ),
    "electra": lambda: hf.ElectraForMaskedLM(hf.ElectraConfig(**DIMS, **IDS, embedding_size=16)),
    "distilbert": lambda: hf.DistilBertForMaskedLM(
        hf.DistilBertConfig(
            dim=32, n_layers=3, n_heads=4, hidden_dim=48, vocab_size=99, max_position_embeddings=64
        )
    ),
    "modernbert": lambda: hf.ModernBertForMaskedLM(hf.ModernBertConfig(**MODERNBERT)),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "t5-gated": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(**T5, feed_forward_proj="gated-gelu")
    ),
    "mt5": lambda: hf.MT5ForConditionalGeneration(hf.MT5Config(**T5)),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**SEQ2SEQ)),
    "marian": lambda: hf.MarianMTModel(hf.MarianConfig(**SEQ2SEQ)),
    "vit": lambda: hf.ViTForImageClassification(
        hf.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            image_size=8,
            patch_size=4,
        )
    ),
    "clip-vision": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**CLIP_VISION)),
    "whisper": lambda: hf.WhisperForConditionalGeneration(hf.WhisperConfig(**WHISPER)),
    # families without a description in inlay.architectures, read by their structure
    "gptj": lambda: hf.GPTJForCausalLM(
        hf.GPTJConfig(
            n_embd=32, n_layer=2, n_head=4, vocab_size=99, rotary_dim=4, n_positions=64, **IDS
        )
    ),
    "deberta": lambda: hf.DebertaV2ForMaskedLM(hf.DebertaV2Config(**DIMS, **IDS)),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**GQA)),
    # one family of each kind that is not a stack of equal blocks of attention and dense layers:
    # experts, latent attention, linear attention, state space, interleaved queries, keys and
    # values of one or all heads, embeddings for every layer
    "mixtral": lambda: hf.MixtralForCausalLM(
        hf.MixtralConfig(**TWO, num_local_experts=4, num_experts_per_tok=2)
    ),
    "deepseek_v3": lambda: hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**LATENT)),
    "qwen3_next": lambda: hf.Qwen3NextForCausalLM(hf.Qwen3NextConfig(**LINEAR)),
    "mamba2": lambda: hf.Mamba2ForCausalLM(hf.Mamba2Config(**MAMBA2)),
    "falcon": lambda: hf.FalconForCausalLM(hf.FalconConfig(**FALCON)),
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(**BLOOM)),
    "gemma3n": lambda: hf.Gemma3nForCausalLM(hf.Gemma3nTextConfig(**PER_LAYER)),
    "llava": lambda: hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(**CLIP_VISION),
            text_config=hf.LlamaConfig(**GQA),
            **LLAVA,
        )
    ),
    "wav2vec2": lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**WAV2VEC2)),
}
"""A new tiny model of every family, by the family's name. Its parameters are those of its class."""


def tiny_model(family: str) -> PreTrainedModel:
    """A new model of a family, in evaluation mode, with every parameter moved from its default.

    family: a name from `FAMILIES`. Every call returns an equal model.
    """
    hf.logging.set_verbosity_error()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = FAMILIES[family]().eval()
        for parameter in model.parameters():
            with torch.no_grad():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.6 * parameter.shape[-1] ** -0.5)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@cache
def shared_tiny_model(family: str) -> PreTrainedModel:
    """The one model of a family that a test session shares: laws leave it as it was."""
    return tiny_model(family)
