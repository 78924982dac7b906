"""`torch.compile` takes a model with inlays in one piece, and computes the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StaticCache
from transformers.modeling_outputs import ModelOutput

import inlay
from inlay.core.method import Spec
from inlay.laws import SLOW_LAWS, Case
from inlay.laws.case import perturb
from inlay.laws.compare import relative_error
from inlay.laws.compiled import BACKEND, fresh_compiler
from tests import zoo

METHODS: dict[str, Spec | Any] = {
    "LoRA": inlay.LoRA(rank=2),
    "Houlsby": inlay.Houlsby(bottleneck=3),
    "IA3": inlay.IA3(),
    "BitFit": inlay.BitFit(),
    "Prefix": inlay.Prefix(length=3, mlp=5, shifts=True),
    "Prompt": inlay.Prompt(length=4),
}
"""The methods that the library promises to compile."""

PAIRS = [
    *((method, "llama") for method in METHODS if method != "BitFit"),
    ("LoRA", "bert"),
    ("BitFit", "bert"),
    ("Prefix", "gpt2"),
    ("Prompt", "gpt2"),
    ("Houlsby", "t5"),
    ("Prompt", "t5"),
]
"""Every method once with a causal base or an encoder, and what differs most from family to family.
"""


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    with fresh_compiler():
        yield


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "family"), PAIRS)
def test_compiled_equals_eager(method: str, family: str) -> None:
    SLOW_LAWS["compiled"](Case(zoo.fresh(family), METHODS[method]))


def breaks(model: Any, inputs: dict[str, Tensor]) -> int:
    count: int = torch._dynamo.explain(model)(**inputs).graph_break_count
    return count


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_no_more_breaks_than_the_bare_base(method: str, family: str) -> None:
    model = zoo.fresh(family)
    ids = torch.randint(8, 60, (2, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    bare = breaks(model, inputs)
    if METHODS[method] == METHODS["BitFit"] and family == "llama":
        pytest.skip("no biases")
    inlay.attach(model, METHODS[method])
    torch._dynamo.reset()
    assert breaks(model, inputs) == bare == 0
