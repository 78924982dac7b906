"""Rows for bases that read images or sound: random ones, in the shapes that the config says."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from inlay.architectures.chart import Chart
from inlay.errors import LawError

SAMPLES = 800
"""How many samples of sound a row has."""


def media_row(chart: Chart, generator: torch.Generator) -> dict[str, Tensor]:
    """One row of what the base reads. Raises LawError where it is none of the usual inputs."""
    name, config = chart.base.main_input_name, chart.stacks[0].config
    shapes = {
        "pixel_values": _shape(config, "num_channels", "image_size", "image_size"),
        "input_features": _shape(config, "num_mel_bins", "max_source_positions"),
        "input_values": (SAMPLES,),
    }
    shape = shapes.get(name)
    if shape is None:
        raise LawError(
            f"the laws can make no inputs for {type(chart.base).__name__}, which reads {name!r}"
        )
    if name == "input_features":
        shape = (shape[0], 2 * shape[1])  # the convolutions before the encoder halve it
    return {name: torch.randn((1, *shape), generator=generator)}


def with_picture(
    chart: Chart, row: dict[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """The row with a picture before its text, where the base reads both and says how long it is."""
    fields = chart.base.config.to_dict()
    token = fields.get("image_token_id", fields.get("image_token_index"))
    length = fields.get("image_seq_length")
    tower = next((stack for stack in chart.stacks if stack.reads == "images"), None)
    shape = None if tower is None else _shape(tower.config, "num_channels", *["image_size"] * 2)
    if shape is None or not isinstance(token, int) or not isinstance(length, int):
        return row
    ids, mask = row["input_ids"], row["attention_mask"]
    ids = ids.where(ids != token, token - 1)
    return {
        **row,
        "input_ids": torch.cat((ids.new_full((1, length), token), ids), 1),
        "attention_mask": torch.cat((mask.new_ones(1, length), mask), 1),
        "pixel_values": torch.randn((1, *shape), generator=generator).to(ids.device),
    }


def _shape(config: PreTrainedConfig, *fields: str) -> tuple[int, ...] | None:
    """The sizes that a config has under these names; None where it lacks one."""
    sizes = [size for field in fields if isinstance(size := config.to_dict().get(field), int)]
    return tuple(sizes) if len(sizes) == len(fields) else None
