"""The base's own keys and values of a text, also where it reads more than the text's tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import inlay
from inlay.architectures.resolve import resolve
from inlay.errors import SpecError
from inlay.runtime.activations import keys_and_values
from tests import zoo

WORDS = (40, 11, 5)
TEXT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def vector_behind() -> tuple[Any, Any]:
    """A base that puts a vector of its own behind a text, and its text stack; it sees videos too.

    Its stacks have 3, 1, 2 and 1 blocks, of different widths.
    """
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    vision |= {"num_spatial_layers": 1, "num_temporal_layers": 2, "num_auxiliary_layers": 1}
    torch.manual_seed(0)
    model = hf.VideoPrismClipModel(hf.VideoPrismConfig(text_config=TEXT, vision_config=vision))
    torch.nn.init.normal_(model.text_model.embeddings.cls_emb)
    return model.eval(), model.text_model


def vector_in_front() -> tuple[Any, Any]:
    """A base that puts a vector of its own before a text."""
    torch.manual_seed(0)
    model = hf.CLIPTextModel(hf.CLIPTextConfig(**TEXT)).eval()
    vector = torch.randn(1, 1, 32)
    model.embeddings.register_forward_hook(lambda _m, _a, y: torch.cat((vector, y), 1))
    return model, model


def every_second() -> tuple[Any, Any]:
    """A base that makes one position of every two tokens."""
    torch.manual_seed(0)
    model = hf.CLIPTextModel(hf.CLIPTextConfig(**TEXT)).eval()
    model.embeddings.register_forward_hook(lambda _m, _a, y: y[:, ::2])
    return model, model


def projected(stack: Any, words: tuple[int, ...]) -> dict[str, Tensor]:
    """What the projections to keys compute of a text, by name: `[T, D]`."""
    keys: dict[str, Tensor] = {}
    hooks = [
        part.register_forward_hook(lambda _m, _a, y, name=name: keys.update({name: y[0]}))
        for name, part in stack.named_modules()
        if name.endswith("k_proj")
    ]
    with torch.no_grad():
        stack(input_ids=torch.tensor([words]))
    for hook in hooks:
        hook.remove()
    return keys


@pytest.mark.parametrize(
    ("make", "places"), [(vector_behind, slice(0, 3)), (vector_in_front, slice(1, 4))]
)
@pytest.mark.parametrize("mlp", [None, 8])
def test_a_prefix_starts_from_the_words_alone(
    make: Callable[[], tuple[Any, Any]], places: slice, mlp: int | None
) -> None:
    model, stack = make()
    expected = list(projected(stack, WORDS).values())
    assert [len(keys) for keys in expected] == [4, 4, 4]
    handle = inlay.attach(model, inlay.Prefix(length=3, mlp=mlp, start=WORDS))
    pieces = [piece for _, _, piece in zoo.pieces(handle)]
    assert len(pieces) == 3
    for piece, keys in zip(pieces, expected, strict=True):
        own = piece.export()["k"].transpose(0, 1).flatten(1)
        torch.testing.assert_close(own, keys[places], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [vector_behind, vector_in_front])
@pytest.mark.parametrize("spec", ["PTuningV2(length=3)", "Prefix(length=2, mlp=5)"])
def test_common_words_stand_alone_too(make: Callable[[], tuple[Any, Any]], spec: str) -> None:
    model, _ = make()
    handle = inlay.attach(model, inlay.parse(spec))
    lengths = {piece.export()["k"].shape[1] for _, _, piece in zoo.pieces(handle)}
    assert lengths == {handle.spec.methods[0].length}


def test_keys_of_more_than_one_word_are_none_of_a_word() -> None:
    model, _ = every_second()
    assert keys_and_values(resolve(model), WORDS) == {}
    with pytest.raises(
        SpecError, match=r"decoder\.0\.attn\.kv does not see each word .* start=None"
    ):
        inlay.attach(model, inlay.Prefix(length=3, mlp=None, start=WORDS))
    inlay.attach(model, inlay.Prefix(length=3, mlp=None))  # common words: random values instead


def test_a_text_alone_is_read_once() -> None:
    model = zoo.fresh("bert")
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    model.base_model.encoder.register_forward_hook(lambda *_: passes.append(1))
    pairs = keys_and_values(resolve(model), WORDS)
    assert len(passes) == 1
    assert {k.shape for k, _ in pairs.values()} == {torch.Size((4, 3, 8))}
