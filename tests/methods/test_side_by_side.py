"""Methods beside those of the adapters library: the same base, the same weights, the same states.

tests/reference/adapters/README.md says how the numbers were made and what they leave out.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
from torch import Tensor

import inlay

FOLDER = Path(__file__).parents[1] / "reference" / "adapters"
FAMILIES = ["bert", "gpt2", "t5"]
SUB_LAYERS = inlay.Where(("attn", "mlp"))

CASES: dict[str, inlay.Spec] = {
    "lora": inlay.LoRA(rank=2, alpha=8),
    "ia3": inlay.IA3(at=("attn.k", "attn.v", "cross.k?", "cross.v?")),
    "prefix": inlay.Prefix(length=3, mlp=None, start=None),
    "prefix-mlp": inlay.Prefix(length=3, mlp=5, start=None),
    "houlsby": inlay.Houlsby(bottleneck=4, at=SUB_LAYERS),
    "houlsby-norms": inlay.Houlsby(bottleneck=4),
    "pfeiffer": inlay.Pfeiffer(bottleneck=4),
    "pfeiffer-upper": inlay.Pfeiffer(bottleneck=4, at=inlay.Where(("block",), layers=(1,))),
    "parallel": inlay.Parallel(bottleneck=4, scale=4.0),
    "parallel-learned": inlay.Parallel(bottleneck=4, learned=True, at=SUB_LAYERS),
    "compacter": inlay.Compacter(bottleneck=4, terms=2, at=SUB_LAYERS),
    "compacter++": inlay.Compacter(bottleneck=4, terms=2, at=("mlp",)),
    "phm": inlay.Compacter(bottleneck=4, terms=2, rank=None, share_slow=False, at=SUB_LAYERS),
    "fusion-pfeiffer": inlay.Fusion(
        adapters=tuple(inlay.Pfeiffer(bottleneck=m) for m in (4, 2, 8)), names=("a", "b", "c")
    ),
    "fusion-houlsby": inlay.Fusion(adapters=(inlay.Houlsby(bottleneck=4, at=SUB_LAYERS),) * 2),
    "gated-lora": inlay.Gate(inlay.LoRA(rank=2, alpha=2), reads="input"),
    "gated-prefix": inlay.Gate(inlay.Prefix(length=3, mlp=None, start=None), reads="input"),
    "gated-pfeiffer": inlay.Gate(inlay.Pfeiffer(bottleneck=4), reads="input"),
    "gated-houlsby": inlay.Gate(inlay.Houlsby(bottleneck=4, at=SUB_LAYERS), reads="input"),
    "gated-parallel": inlay.Gate(inlay.Parallel(bottleneck=4, scale=4.0), reads="input"),
    "mam": inlay.MAM(length=3, bottleneck=4, scale=4.0, mlp=5),
    "unipelt": inlay.UniPELT(rank=2, length=3, bottleneck=4, mlp=5),
}

GATED = ["gated-lora", "gated-pfeiffer", "gated-houlsby", "gated-parallel"]

PARTS = {
    "inner.down": "adapter_down.0.weight",
    "inner.down_bias": "adapter_down.0.bias",
    "inner.up": "adapter_up.weight",
    "inner.up_bias": "adapter_up.bias",
    "inner.scale": "scaling",
    "a": "lora_A",
    "b": "lora_B",
    "factor": "lora_B",
    "gain": "gain",
    "bias": "bias",
    "gate.weight": "gate.weight",
    "gate.bias": "gate.bias",
    "down.s": "adapter_down.0.W_left",
    "down.t": "adapter_down.0.W_right",
    "down.b": "adapter_down.0.W",
    "down.bias": "adapter_down.0.b",
    "up.s": "adapter_up.W_left",
    "up.t": "adapter_up.W_right",
    "up.b": "adapter_up.W",
    "up.bias": "adapter_up.b",
    "query": "fusion/query.weight",
    "query_bias": "fusion/query.bias",
    "key": "fusion/key.weight",
    "key_bias": "fusion/key.bias",
    "value": "fusion/value.weight",
    "net.seed": "wte.weight",
    "net.inner.weight": "control_trans.0.weight",
    "net.inner.bias": "control_trans.0.bias",
    "net.outer.weight": "control_trans.2.weight",
    "net.outer.bias": "control_trans.2.bias",
}
"""What a tensor of a piece, or of a shared module, is called in the library."""


def values(name: str, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """The numbers that the reference gave to the tensor of this name."""
    numbers = numpy.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(0.3 * numpy.asarray(numbers))


def stored(case: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{case}.json").read_text())


def base(family: str) -> transformers.PreTrainedModel:
    fields = stored("base")["models"][family]
    kind = getattr(transformers, fields["class"])
    model = kind(kind.config_class(**fields["config"])).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_gain = parameter.dim() == 1 and name.endswith(".weight")
            parameter.copy_(values(name, parameter.shape) + is_gain)
            if "relative_attention_bias" in name:
                parameter.zero_()  # theirs counts positions from the start of a prefix
    return model


def states(family: str, model: transformers.PreTrainedModel) -> Tensor:
    """The last hidden state for the inputs of the reference, or for their first positions."""
    fields = stored("base")
    ids = torch.tensor(fields["input_ids"])
    ids = ids[:, :1] if family.endswith("-first") else ids
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family == "t5":
        inputs["decoder_input_ids"] = torch.tensor(fields["decoder_input_ids"])
    with torch.no_grad():
        return model(**inputs).last_hidden_state


def compare(family: str, case: str, model: transformers.PreTrainedModel) -> None:
    expected = torch.tensor(stored(case)["last_hidden_state"][family], dtype=torch.float64)
    tolerance = 1e-5 if family == "t5" else 1e-7  # T5 has norms and softmax in fp32 in any dtype
    torch.testing.assert_close(states(family, model), expected, rtol=0, atol=tolerance)


def reference(key: str, tensor: Tensor, reads: bool = False) -> Tensor:
    """The numbers of the reference for one entry of an inlay's training state.

    reads: whether gates in a decoder read the text, which in the library they do to its end.
    """
    where, _, part = key.partition(".")[2].partition(".")
    place = where.partition("/")[0].replace(":", ".").replace("block", "mlp")
    if key.startswith("shared."):
        module = where.partition("/")[2].replace(":", ".")
        if module == "slow":
            return values("shared/phm_rule", tensor.shape)
        if module.startswith("slow."):
            place, _, half = module.removeprefix("slow.").rpartition(".")
            name = {"down": "adapter_down.0", "up": "adapter_up"}[half]
            return values(f"{place}/{name}.phm_rule", tensor.shape)
        return values(f"{module}/{PARTS[part]}", tensor.shape)
    part = part if part in PARTS else part.removeprefix("inner.")
    if part in ("k", "v"):  # one layer of [P, L, 2, H, K]
        stack, layer, role = place.split(".", 2)
        heads, length, width = tensor.shape
        whole = values(f"{stack}.{role}/control_trans", (length, 2, 2, heads, width))
        return whole[:, int(layer), ("k", "v").index(part)].transpose(0, 1)
    ahead = place.startswith("decoder") and not place.endswith("cross.v") and not reads
    if part == "gate.weight" and ahead:
        return torch.zeros_like(tensor)
    label, _, rest = part.removeprefix("adapter.inner.bottlenecks.").partition(".")
    if label.isdigit():
        return values(f"{place}/{'abc'[int(label)]}.{PARTS[f'inner.{rest}']}", tensor.shape)
    part = part.removeprefix("adapter.inner.attention.")
    numbers = values(f"{place}/{PARTS[part]}", tensor.shape)
    return numbers.T if part == "value" else numbers


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_alone(family: str) -> None:
    compare(family, "base", base(family))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_equal_weights_give_equal_states(case: str, family: str) -> None:
    model = base(family)
    handle = inlay.attach(model, CASES[case])
    model.double()
    state = handle.training_state()
    handle.load_training_state({key: reference(key, tensor) for key, tensor in state.items()})
    compare(family, case, model)


@pytest.mark.parametrize("case", GATED)
def test_gates_of_a_decoder_at_the_first_position(case: str) -> None:
    model = base("gpt2")
    handle = inlay.attach(model, CASES[case])
    model.double()
    state = handle.training_state()
    handle.load_training_state({key: reference(key, t, reads=True) for key, t in state.items()})
    compare("gpt2-first", case, model)


def test_every_stored_case_is_compared() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {*CASES, "base"}
