"""Tiny configurations of any config class of transformers, made from its defaults.

Widths are divided by one factor, so that what must fit together still does; depths, vocabularies,
images and experts are cut. Not every config class stands that, so several factors are tried.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

Fields = dict[str, Any]

CUTS = (
    (16, True, True),
    (8, True, True),
    (16, False, True),
    (8, False, False),
    (4, True, True),
    (4, True, False),
    (2, True, True),
    (1, True, True),
    (1, False, False),
)
"""What widths are divided by, whether depths are cut, whether positions are."""

POSITIONS = {
    "max_position_embeddings": 512,
    "max_source_positions": 100,
    "chunk_size": 8,
    "mamba_chunk_size": 8,
}
"""How many positions a tiny model has; what sound is made of is long where there are many."""

VOCABULARY = 300
MISSING = {"vocab_size": 60, "rope_theta": 10000.0}
"""What some config classes have no default for, and their models cannot do without."""

MOST_STAGES = 8
"""A longer list with a number a layer says something of each layer, and no depths of stages."""

MOST_PARAMETERS = 150_000_000
DEPTH = re.compile(
    r"^(?!num_feat_extract)(\w+_)?(n_layers?|num_(\w+_)?layers|\w*encoder_layers|\w*decoder_layers|depths?|num_blocks"
    r"|layers|num_self_attends_per_block|num_hidden_groups|n_blocks|num_stages_layers)$"
)
WIDTH = re.compile(
    r"(hidden|embed|embd|d_model|d_latents|d_ff|d_kv|d_inner|n_inner|ffn|inter|_dim$|^dim$|dims$|width"
    r"|_rank$|channels$|_size$|_sizes$|filters$|^dim_)"
)
NOT_WIDTH = re.compile(
    r"(vocab|patch|image_size|kernel|window|num_channels|in_channels|position|chunk|block_size"
    r"|spatial|temporal|mask|stride|group_size|input_size|sampl|audio_channels|mel|expert_size"
    r"|relative|bucket|conv_dim$|tubelet|crop|grid|codebook_size|factor|length|max_|out_channels$)"
)
EXPERTS = re.compile(r"(num_experts|num_local_experts|n_routed_experts|moe_num_experts)$")
TOKEN = re.compile(r"(token|_id$|_ids$|_index$|_idx$)")
OUTPUTS = frozenset({"out_features", "out_indices", "_out_features", "_out_indices", "stage_names"})
NAMES = frozenset({"model_type", "transformers_version", "architectures", "torch_dtype", "dtype"})


def tiny_configs(config_class: type[PreTrainedConfig]) -> Iterator[PreTrainedConfig]:
    """Tiny configurations of a class, the smallest first. What cannot be made is left out.

    Raises what the config class raises where not even the last, with its own sizes, can be made.
    """
    error = None
    for factor, cut_depth, cut_positions in CUTS:
        try:
            fields = config_class().to_dict()
            config = config_class.from_dict(_tiny(fields, factor, cut_depth, cut_positions))
        except Exception as failure:
            error = failure
            continue
        error = None
        yield config
    if error is not None:
        raise error


def tiny_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A random model of a class. Raises MemoryError where it would not be tiny.

    config: its own, or that of a larger model which it is a part of.
    """
    config = _own_config(model_class, config)
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(config).parameters())
    if size > MOST_PARAMETERS:
        raise MemoryError(f"{size:,} parameters")
    torch.manual_seed(0)
    return model_class(config).float().eval()


def _own_config(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedConfig:
    """The config, or the one in it that the class is made from."""
    kind = model_class.config_class
    if kind is None or isinstance(config, kind):
        return config
    return next((part for part in vars(config).values() if isinstance(part, kind)), config)


def _tiny(fields: Fields, factor: int, cut_depth: bool, cut_positions: bool) -> Fields:
    """The fields of a config, and of the configs in it, made small."""
    depth = _depth(fields) if cut_depth else 10**6
    tiny = {}
    for name, value in fields.items():
        if name in OUTPUTS:  # they name stages that a tiny model does not have
            continue
        if name == "per_layer_config" and isinstance(value, dict):
            value = {layer: own for layer, own in value.items() if int(layer) < depth}
        if isinstance(value, dict) and name not in ("id2label", "label2id"):
            tiny[name] = _tiny(value, factor, cut_depth, cut_positions)
        elif value is None and name in MISSING:
            tiny[name] = MISSING[name]
        elif name in NAMES or isinstance(value, (bool, str)) or value is None:
            tiny[name] = value
        elif isinstance(value, (list, tuple)):
            tiny[name] = _tiny_list(name, list(value), factor, fields, depth)
        elif isinstance(value, int):
            tiny[name] = _tiny_number(name, value, factor, depth, cut_positions)
        else:
            tiny[name] = value
    if isinstance(tiny.get("image_size"), int):
        tiny["image_size"] = _image_size(tiny)
    for width in ("hidden_size", "embed_dim", "d_model", "dim"):
        for heads in ("num_attention_heads", "num_heads", "attention_heads", "n_heads"):
            wide, count = tiny.get(width), tiny.get(heads)
            if isinstance(wide, int) and isinstance(count, int) and wide % count:
                tiny[heads] = next(n for n in range(count, 0, -1) if wide % n == 0)
            known = (
                isinstance(wide, int) and isinstance(count, int) and tiny.get("head_dim") is None
            )
            if known and (wide // tiny[heads]) % 4:  # rotary embeddings turn pairs, in two ways
                tiny[heads] = next(n for n in (4, 2, 1) if wide % (4 * n) == 0 or n == 1)
            if known and "head_dim" in tiny:
                tiny["head_dim"] = wide // tiny[heads]
            if isinstance(count, int) and tiny.get("num_key_value_heads", count) is None:
                tiny["num_key_value_heads"] = tiny[heads]
    if tiny.get("rope_parameters") == {} and tiny.get("layer_types"):
        rotary = {"rope_type": "default", "rope_theta": MISSING["rope_theta"]}
        tiny["rope_parameters"] = {kind: dict(rotary) for kind in tiny["layer_types"]}
    if "mrope_section" in tiny:
        tiny["mrope_section"] = [2, 1, 1]
    return tiny


def _image_size(fields: Fields) -> int:
    """The side of a small image, in pixels: some patches, or one window of them."""
    patch, window, size = fields.get("patch_size"), fields.get("window_size"), fields["image_size"]
    patch = patch if isinstance(patch, int) else 4
    if "window_size" not in fields:
        return 64 if 64 % patch == 0 else 4 * patch
    stages = "depths" in fields or not isinstance(window, int)  # they shrink it, by their windows
    return size if stages else min(size, patch * max(window, 1))


def _depth(fields: Fields) -> int:
    """How many blocks a tiny stack has: two, or so many that each kind of block comes."""
    kinds = fields.get("layer_types")
    if not isinstance(kinds, (list, tuple)) or len(kinds) < 2:
        return 2
    last_first = max(list(kinds).index(kind) for kind in set(kinds))
    return max(2, min(last_first + 1, 6))


def _tiny_number(name: str, value: int, factor: int, depth: int, cut_positions: bool) -> int:
    if DEPTH.search(name):
        return min(value, depth)
    if "vocab" in name and "type" not in name:
        return min(value, VOCABULARY)
    if TOKEN.search(name):
        return value if value < VOCABULARY else 200 + value % 97
    if EXPERTS.search(name):
        return min(value, 4)
    if name in ("num_experts_per_tok", "moe_topk", "moe_k"):
        return min(value, 2)
    if name in ("n_group", "topk_group"):
        return 1
    if name in POSITIONS:
        return min(value, POSITIONS[name]) if cut_positions else value
    if WIDTH.search(name) and not NOT_WIDTH.search(name) and value >= 32 and value % factor == 0:
        return max(value // factor, 4)
    return value


def _tiny_list(name: str, value: list[Any], factor: int, fields: Fields, depth: int) -> list[Any]:
    numbers = all(isinstance(entry, int) and not isinstance(entry, bool) for entry in value)
    if value and isinstance(value[0], dict):
        return [_tiny(e, factor, True, True) if isinstance(e, dict) else e for e in value]
    layers = fields.get("num_hidden_layers")
    per_layer = isinstance(layers, int) and len(value) == layers
    if numbers and DEPTH.search(name) and not (per_layer and len(value) > MOST_STAGES):
        return [min(entry, 2, depth) for entry in value] if depth < 10**6 else value
    if numbers and WIDTH.search(name) and not NOT_WIDTH.search(name):
        wide = all(entry >= 32 and entry % min(factor, 8) == 0 for entry in value)
        return [entry // min(factor, 8) for entry in value] if wide else value
    if numbers and TOKEN.search(name):
        return [entry if entry < VOCABULARY else 200 + entry % 97 for entry in value]
    return value[:depth] if per_layer else value
