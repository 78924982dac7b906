"""What is read from a config, also where every layer has its own."""

import pytest
import torch
import transformers as hf

import inlay
from inlay.architectures.config import hidden_width, max_positions, sliding_window
from inlay.architectures.resolve import resolve
from tests.every.tiny import tiny_configs, tiny_model


@pytest.mark.parametrize(
    ("by_layer", "window"),
    [
        (None, 32),
        ({1: {"sliding_window": 16}, 2: {"sliding_window": None}}, 16),
        ({layer: {"sliding_window": None} for layer in range(3)}, None),
    ],
)
def test_the_window_is_the_smallest_of_any_layer(by_layer, window):
    config = hf.MistralConfig(sliding_window=32, num_hidden_layers=3, per_layer_config=by_layer)
    assert sliding_window(config) == window


def test_what_differs_between_layers_is_not_known_as_one_number():
    own = {1: {"hidden_size": 64, "max_position_embeddings": 7}}
    config = hf.MistralConfig(hidden_size=32, num_hidden_layers=2, per_layer_config=own)
    assert hidden_width(config) == 0
    assert max_positions(config) is None
    assert hidden_width(hf.MistralConfig(hidden_size=32, num_hidden_layers=2)) == 32


def test_a_base_whose_layers_have_windows_of_their_own():
    config = next(tiny_configs(hf.NeoMMEConfig))
    windows = [layer.sliding_window for layer in config.per_layer_config]
    model = tiny_model(hf.NeoMMEForMaskedLM, config)
    (stack,) = resolve(model).stacks
    assert stack.window == min(window for window in windows if window is not None)
    inlay.attach(model, inlay.LoRA(rank=2))
    model(input_ids=torch.tensor([[7, 8, 9]])).logits.sum().backward()
