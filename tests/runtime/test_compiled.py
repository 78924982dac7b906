"""`torch.compile` takes a model with inlays in one piece, and computes the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, StaticCache

import inlay
from inlay.core.method import Spec
from inlay.laws import SLOW_LAWS, Broken, Case
from inlay.laws.case import perturb
from inlay.laws.compare import relative_error
from inlay.laws.compiled import BACKEND, fresh_compiler
from inlay.runtime import openings, shared_prefix
from inlay.testing.models import DIMS
from tests import zoo

METHODS: dict[str, Spec | Any] = {
    "LoRA": inlay.LoRA(rank=2),
    "Houlsby": inlay.Houlsby(bottleneck=3),
    "IA3": inlay.IA3(),
    "BitFit": inlay.BitFit(),
    "Prefix": inlay.Prefix(length=3, mlp=5, shifts=True),
    "Prompt": inlay.Prompt(length=4),
}
"""The methods that the library promises to compile, on every base that compiles alone."""

ELSEWHERE: dict[str, Spec | Any] = {
    "experts": inlay.LoRA(rank=2, at="mlp.experts.down"),
    "AdaMix": inlay.AdaMix.examples[1],
    "AdapterDrop": inlay.AdapterDrop.examples[0],
}
"""What a graph holds in other ways: pieces at single experts, and what is drawn in each pass."""

PAIRS = [
    ("LoRA", "llama"),
    ("IA3", "llama"),
    ("Prefix", "llama"),
    ("Prompt", "llama"),
    ("Prompt", "olmo2"),  # in its rows
    ("Houlsby", "gpt2"),
    ("BitFit", "bert"),
    ("experts", "mixtral"),
    ("AdaMix", "bert"),
    ("AdapterDrop", "bert"),
]
"""Every method once, and every way into a causal base."""

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    with fresh_compiler():
        yield


def compiled(model: Any) -> Any:
    return torch.compile(model, fullgraph=True, backend=BACKEND, dynamic=False)


@pytest.mark.parametrize(("method", "family"), PAIRS)
def test_compiled_equals_eager(method: str, family: str) -> None:
    SLOW_LAWS["compiled"](Case(zoo.fresh(family), {**METHODS, **ELSEWHERE}[method]))


def test_a_number_that_is_asked_for_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openings, "readable", lambda tensor: True)
    with pytest.raises(Broken, match="one piece"):
        SLOW_LAWS["compiled"](Case(zoo.fresh("llama"), METHODS["LoRA"]))


def test_other_keys_when_compiled_break_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    spread = shared_prefix.PrefixView._spread

    def wrong(self: Any, by_group: Tensor, batch: int) -> Tensor:
        result: Tensor = spread(self, by_group, batch)
        return 0.9 * result if torch.compiler.is_compiling() else result

    monkeypatch.setattr(shared_prefix.PrefixView, "_spread", wrong)
    with pytest.raises(Broken):
        SLOW_LAWS["compiled"](Case(zoo.fresh("llama"), METHODS["Prompt"]))


def test_no_break_where_the_bare_base_has_none() -> None:
    ids = torch.randint(8, 60, (2, 12))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model = zoo.fresh("llama")
    for spec in METHODS.values():
        if spec != METHODS["BitFit"]:  # llama has no biases
            inlay.attach(model, spec, name=type(spec).__name__)
    explained = torch._dynamo.explain(model)(**inputs)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_the_first_call_with_labels_returns_the_loss() -> None:
    """A classifier writes what kind of loss it has into its config in the first pass."""
    model = BertForSequenceClassification(BertConfig(**DIMS, num_labels=3)).eval()
    perturb(inlay.attach(model, METHODS["LoRA"]))
    ids = torch.randint(8, 60, (4, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.tensor([0, 2, 1, 1])
    assert model.config.problem_type is None
    output = compiled(model)(**inputs, labels=labels)
    eager = model(**inputs, labels=labels)
    assert list(output) == list(eager) == ["loss", "logits"]
    torch.testing.assert_close(output.loss, eager.loss)


def test_a_loop_of_ones_own_reads_token_by_token() -> None:
    """The first pass and the later ones, compiled, with a static cache and without masks."""
    model = zoo.fresh("llama")
    spec = METHODS["Prompt"] + METHODS["LoRA"] + METHODS["Prefix"]
    perturb(inlay.attach(model, spec))
    text = torch.randint(8, 60, (2, 6))
    step = compiled(model)

    def read(run: Any) -> Tensor:
        cache = StaticCache(config=model.config, max_cache_len=12)
        logits = [model(text, past_key_values=cache).logits]
        for position in range(6, 10):
            at = torch.full((2, 1), position)
            token = torch.full((2, 1), position + 3)
            logits.append(run(token, position_ids=at, past_key_values=cache).logits)
        return torch.cat(logits, 1)

    with torch.no_grad():
        eager = read(model)
        assert relative_error(read(step), eager) < 1e-4
        following = torch.arange(9, 13).expand(2, -1)
        whole = model(torch.cat((text, following), 1), use_cache=False).logits
        assert relative_error(eager, whole) < 1e-4
