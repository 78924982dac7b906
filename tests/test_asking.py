"""ask_all: several inlays on the same texts, layers below their first pieces run once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import inlay
from inlay.core.site import Where
from inlay.errors import NamingError, RowsError
from inlay.laws.case import perturb
from inlay.laws.compare import relative_error
from tests import zoo
from tests.methods import exact

SPECS = {
    "adapter": inlay.Pfeiffer(bottleneck=4, at=Where("block", (1, 2))),
    "lora": inlay.LoRA(rank=2, at=Where("attn.q", (2,))),
    "top": inlay.Houlsby(bottleneck=3, std=0.3, at=Where("mlp", (1,))),
}


def prepared(family: str, specs: dict[str, inlay.Method]) -> Any:
    model = zoo.fresh(family)
    for seed, (name, spec) in enumerate(specs.items()):
        handle = inlay.attach(model, spec, name=name)
        torch.manual_seed(seed)
        perturb(handle)
    return model


def rows_read(layers: Any) -> list[int]:
    """A list that is filled with how many rows each block reads, in order."""
    counts: list[int] = []

    def count(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        counts.append(len(hidden))

    for layer in layers:
        layer.register_forward_pre_hook(count, with_kwargs=True)
    return counts


def alone(model: Any, name: str, inputs: dict[str, Tensor]) -> Tensor:
    count = len(inputs["input_ids"])
    with torch.no_grad(), inlay.rows(model, [name] * count):
        return model(**inputs, use_cache=False).logits


@pytest.mark.parametrize("names", [list(SPECS), ["adapter", "lora"]], ids=len)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    "family", ["llama", "gemma3", "gpt2", "gpt_neox", "opt", "bert", "t5", "bart"]
)
def test_equals_separate_passes(family: str, count: int, names: list[str]) -> None:
    model = prepared(family, SPECS)
    inputs = exact.batch(family, count=count)
    inputs["attention_mask"][0, -2:] = 0
    with torch.no_grad():  # the first question is the first pass of several rows as well
        outputs = inlay.ask_all(model, names, **inputs)
    expected = {name: alone(model, name, inputs) for name in names}
    assert list(outputs) == names
    for name, logits in expected.items():
        text = inputs["attention_mask"].bool() if "decoder_input_ids" not in inputs else slice(None)
        assert relative_error(outputs[name].logits[text], logits[text]) < 1e-5, name


def test_the_lowest_layers_read_each_text_once() -> None:
    model = prepared("llama", SPECS)
    inlay.ask_all(model, list(SPECS), **exact.batch("llama"))  # what is measured once
    counts = rows_read(inlay.attached(model)["lora"].chart.stacks[0].layers)
    inlay.ask_all(model, list(SPECS), **exact.batch("llama"))
    assert counts == [2, 6, 6]


def test_an_encoder_without_pieces_runs_once() -> None:
    specs = {
        name: inlay.LoRA(rank=2, at=Where("attn.q", (layer,), ("decoder",)))
        for name, layer in (("a", 1), ("b", -1))
    }
    model = prepared("t5", specs)
    inputs = exact.batch("t5")
    expected = {name: alone(model, name, inputs) for name in specs}
    inlay.ask_all(model, list(specs), **inputs)
    encoder, decoder = (
        rows_read(stack.layers) for stack in inlay.attached(model)["a"].chart.stacks
    )
    outputs = inlay.ask_all(model, list(specs), **inputs)
    for name, logits in expected.items():
        assert relative_error(outputs[name].logits, logits) < 1e-5
    assert set(encoder) == {2} and decoder == [2, 4]


def test_a_decoder_reads_what_the_last_norm_of_its_encoder_learned() -> None:
    specs = {
        "norm": inlay.LayerNorm(at=Where("norm.final", stacks=("encoder",))),
        "lora": inlay.LoRA(rank=2, at=Where("attn.q", (-1,), ("decoder",))),
    }
    model = prepared("t5", specs)
    inputs = exact.batch("t5")
    outputs = inlay.ask_all(model, list(specs), **inputs)
    for name in specs:
        assert relative_error(outputs[name].logits, alone(model, name, inputs)) < 1e-5, name


@pytest.mark.parametrize(
    "spec",
    [inlay.Prompt(length=2), inlay.Prefix(length=2, mlp=None, shifts=True), inlay.BitFit()],
    ids=repr,
)
def test_what_acts_on_the_first_layer_leaves_nothing_to_share(spec: inlay.Method) -> None:
    model = prepared("llama", {**SPECS, "low": spec})
    inputs = exact.batch("llama")
    expected = alone(model, "low", inputs)
    counts = rows_read(inlay.attached(model)["low"].chart.stacks[0].layers)
    output = inlay.ask_all(model, ["low", "lora"], **inputs)
    assert relative_error(output["low"].logits, expected) < 1e-5
    assert max(counts) == 4


def test_dropped_layers_are_shared() -> None:
    model = zoo.fresh("llama")
    names = []
    for seed in range(3):
        handle = inlay.attach(model, inlay.Pfeiffer(bottleneck=4), name=f"t{seed}")
        torch.manual_seed(seed)
        perturb(handle)
        names.append(inlay.drop_layers(handle, 2).name)
    inlay.ask_all(model, names, **exact.batch("llama"))
    counts = rows_read(handle.chart.stacks[0].layers)
    outputs = inlay.ask_all(model, names, **exact.batch("llama"))
    assert counts == [2, 2, 6]
    for name in names:
        assert relative_error(outputs[name].logits, alone(model, name, exact.batch("llama"))) < 1e-5


def test_what_comes_after_the_layers_hinders_no_sharing() -> None:
    """The base's own head, which is learned with the adapter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.BertForSequenceClassification(zoo.fresh("bert").config).eval()
    names = []
    for seed in range(2):
        handle = inlay.attach(
            model, inlay.Pfeiffer(bottleneck=4) + inlay.BaseHead(), name=f"t{seed}"
        )
        torch.manual_seed(seed)
        perturb(handle)
        names.append(inlay.drop_layers(handle, 2).name)
    inputs = exact.batch("bert")
    inlay.ask_all(model, names, **inputs)
    counts = rows_read(handle.chart.stacks[0].layers)
    outputs = inlay.ask_all(model, names, **inputs)
    assert counts == [2, 2, 4]
    for name in names:
        with torch.no_grad(), inlay.rows(model, [name, name]):
            expected = model(**inputs).logits
        assert relative_error(outputs[name].logits, expected) < 1e-5


def test_refusals_and_no_trace() -> None:
    model = prepared("llama", SPECS)
    inputs = exact.batch("llama")
    with pytest.raises(NamingError, match="no inlay is called 'lorra'"):
        inlay.ask_all(model, ["lorra"], **inputs)
    with pytest.raises(RowsError, match="each once"):
        inlay.ask_all(model, ["lora", "lora"], **inputs)
    with pytest.raises(RowsError, match="needs a batch"):
        inlay.ask_all(model, ["lora"])
    layers = inlay.attached(model)["lora"].chart.stacks[0].layers
    assert not any(layer._forward_pre_hooks_with_kwargs for layer in layers)
