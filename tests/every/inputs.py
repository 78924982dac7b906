"""Inputs for a model that nobody described: the first of several that its forward pass takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

Inputs = dict[str, Any]


def working_inputs(model: PreTrainedModel) -> Inputs | None:
    """The first of the candidates that the bare model runs on; None where it runs on none."""
    for inputs in candidates(model):
        try:
            with torch.no_grad():
                output = model(**inputs)
        except Exception:
            continue
        if floating(output):
            return inputs
    return None


def floating(output: Any) -> list[Tensor]:
    """The tensors of an output that gradients can come from."""
    values = list(output.values()) if isinstance(output, dict) else output
    values = values if isinstance(values, (list, tuple)) else [values]
    tensors = [value for value in values if isinstance(value, Tensor)]
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def candidates(model: PreTrainedModel) -> Iterator[Inputs]:
    """Inputs of several kinds, each alone and then with others that the forward pass names."""
    takes = set(inspect.signature(type(model).forward).parameters)
    config = model.config
    text = _text(config)
    singles = {name: value for name, value in {**text, **_media(config)}.items() if name in takes}
    main = model.main_input_name
    decoder = {"decoder_input_ids": text["input_ids"]} if "decoder_input_ids" in takes else {}
    if "input_ids" in takes:
        yield {"input_ids": text["input_ids"], "attention_mask": text["attention_mask"], **decoder}
        yield {"input_ids": text["input_ids"], **decoder}
    if main in singles:
        for shape in singles[main] if isinstance(singles[main], list) else [singles[main]]:
            yield {main: shape, **decoder}
    for name, shapes in singles.items():
        if isinstance(shapes, list):
            for shape in shapes:
                yield {name: shape}
                yield {name: shape, **decoder}
                if "input_ids" in takes:
                    yield {name: shape, **text}
                    yield {name: shape, "input_ids": text["input_ids"]}
    if "grid_thw" in takes:
        yield _patches(model, takes)
    if "bbox" in takes:
        boxes = torch.zeros(*text["input_ids"].shape, 4, dtype=torch.long)
        for images in singles.get("pixel_values", [None]):
            more = {} if images is None else {"pixel_values": images}
            yield {**text, "bbox": boxes, **more, **decoder}


def _patches(model: PreTrainedModel, takes: set[str]) -> Inputs:
    """Images that were cut into patches before, one row a patch, with their grids."""
    fields = _all_fields(model.config)
    patch, time = fields.get("patch_size", 14), fields.get("temporal_patch_size", 1)
    channels = fields.get("in_channels", fields.get("in_chans", fields.get("num_channels", 3)))
    name = next(n for n in (*takes, "hidden_states") if n in ("pixel_values", "hidden_states"))
    pixels = torch.randn(32, channels * time * patch * patch)
    return {name: pixels, "grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]])}


def _text(config: PreTrainedConfig) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    size = config.get_text_config()
    size = vars(size).get("vocab_size", vars(config).get("vocab_size", 60))
    size = size if isinstance(size, int) else 60
    ids = torch.randint(min(5, size - 1), max(min(size, 60), 6), (2, 8), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _media(config: PreTrainedConfig) -> dict[str, list[Tensor]]:
    """Images, sounds and features in the shapes that are usual."""
    fields = _all_fields(config)

    def number(*names: str, default: int) -> int:
        return next((v for n in names if isinstance(v := fields.get(n), int)), default)

    size = fields.get("image_size", 64)
    size = size[0] if isinstance(size, (list, tuple)) else size
    channels = number("num_channels", "in_channels", "in_chans", default=3)
    frames = number("num_frames", "frames_per_clip", default=8)
    mel = number("num_mel_bins", "feature_size", "input_feat_per_channel", default=80)
    long = 2 * number("max_source_positions", default=50)
    media = {
        "pixel_values": [(2, channels, size, size), (2, channels, 224, 224),
                         (2, frames, channels, size, size), (2, 1, channels, size, size)],
        "pixel_values_videos": [(2, frames, channels, size, size)],
        "input_features": [(2, mel, long), (2, 100, mel), (2, mel, 3000), (2, 160, 160)],
        "input_values": [(2, 4000), (2, 1, 4000), (2, number("max_length", default=100), mel),
                         (2, 50, mel)],
        "audio_values": [(2, 1, 4000)],
        "past_values": [(2, number("context_length", "num_time_steps", default=64),
                         number("num_input_channels", "input_size", default=1)),
                        (2, number("context_length", default=64))],
        "spectrogram": [(2, 50, mel)],
    }  # fmt: skip
    return {name: [torch.randn(shape) for shape in shapes] for name, shapes in media.items()}


def _all_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a config and of the configs in it; the outer ones count."""
    fields: dict[str, Any] = {}
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            fields |= _all_fields(value)
    return {**fields, **vars(config)}
