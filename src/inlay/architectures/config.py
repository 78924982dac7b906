"""What is read from a base's configuration where families differ in the fields that they have."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


def hidden_width(config: PreTrainedConfig) -> int:
    """The width D of the hidden states; 0 where the config does not say it as one number."""
    widths = (_optional(config, name) for name in ("hidden_size", "d_model"))
    return next((width for width in widths if isinstance(width, int)), 0)


def is_decoder(config: PreTrainedConfig) -> bool:
    """Whether the config makes a decoder of an architecture that can be either (BERT)."""
    return bool(_optional(config, "is_decoder"))


def max_positions(config: PreTrainedConfig) -> int | None:
    """How many position ids there are; None where the config does not limit them."""
    return _optional(config, "max_position_embeddings")


def sliding_window(config: PreTrainedConfig) -> int | None:
    """How many positions back a block sees, where some block sees fewer than all; else None."""
    kinds = _optional(config, "layer_types")
    if kinds is not None and all(kind == "full_attention" for kind in kinds):
        return None
    windows = [window for window in _by_layer(config, "sliding_window") if window is not None]
    return min(windows, default=None)


def _optional(config: PreTrainedConfig, field: str) -> Any:
    """A field of the config, also under its family's own name for it.

    None where it has none, and where its layers differ in it.
    """
    first, *others = _by_layer(config, field)
    return first if all(value == first for value in others) else None


def _by_layer(config: PreTrainedConfig, field: str) -> list[Any]:
    """A field of the configs of all layers where the layers have their own; else of the config."""
    layers = config.per_layer_config if config.is_heterogeneous else [config]
    return [getattr(layer, field, None) for layer in layers]
