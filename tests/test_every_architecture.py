"""The script over all architectures: it builds, attaches, runs and counts."""

from __future__ import annotations

import json
import re

import pytest
import torch

import inlay
from tests import zoo
from tests.every.examine import Findings, examples, message_kind, short, try_spec
from tests.every_architecture import STORED, classes, counts, examined, summary

THREE = {
    "Qwen2ForCausalLM": ("Qwen2Config", {"decoder": 2}),
    "CLIPVisionModel": ("CLIPVisionConfig", {"vision": 2}),
    "WhisperForConditionalGeneration": ("WhisperConfig", {"audio": 2, "decoder": 2}),
}


@pytest.mark.parametrize("name", THREE)
def test_three_classes(name: str) -> None:
    config, stacks = THREE[name]
    findings = examined(config, name)
    assert findings["built"] and findings["runs"]
    assert findings["stacks"] == stacks
    assert findings["crashed"] == findings["late"] == {}
    assert len(findings["works"]) + len(findings["refused"]) == len(examples())
    counts = summary([findings])
    assert counts["specs that work"] == len(findings["works"]) > 25
    assert counts["specs that crash"] == 0


def test_a_class_that_cannot_be_built_is_told() -> None:
    findings = examined("GPT2Config", "WhisperModel")
    assert not findings["built"]
    assert findings["note"]
    assert summary([findings])["not built"] == {"WhisperModel": findings["note"]}


def test_every_config_class_has_a_class() -> None:
    names = [name for _, _, name in classes()]
    assert len(names) > 400
    assert {"LlavaForConditionalGeneration", "Wav2Vec2ForCTC", "ViTModel"} <= set(names)


def test_messages_of_one_kind_are_counted_together() -> None:
    first = message_kind("LoRA on BertModel: this model has no 'embed'; use LoRA(at=('attn.q',))")
    assert first == message_kind("IA3 on OPTForCausalLM: this model has no 'a' or 'b'; use BitFit")


SHARE = 0.8
"""How many of the classes an examination had reached when it was stored."""


def test_what_is_stored_is_of_these_classes_and_without_a_crash() -> None:
    stored = json.loads(STORED.read_text())
    names = {name for _, _, name in classes()}
    reached = set(stored["by class"]) | set(stored["not built"])
    assert reached <= names and len(reached) >= SHARE * len(names)
    assert stored["specs that crash"] == 0
    assert not re.search(r"/work|/tmp|/home|/usr|/dev/shm|\.venv|site-packages", STORED.read_text())
    assert "specs that crash: 0" in counts(stored).splitlines()


def test_messages_are_stored_without_paths() -> None:
    error = OSError("no file /somewhere/lib/python3/x_y.py at a/b or 1 / 2,\nfor </s>")
    assert short(error) == "OSError: no file … at a/b or 1 / 2, for </s>"


def test_a_class_is_examined_further_under_new_specs() -> None:
    known = Findings("GPT2LMHeadModel", built=True, works=["LoRA(rank=2)", "Gone()"])
    specs = {repr(spec) for spec, _ in examples()}
    findings = examined("GPT2Config", "GPT2LMHeadModel", known.of(specs).as_dict())
    assert Findings(**findings).specs == specs
    assert findings["works"][0] == "LoRA(rank=2)"
    assert findings["stacks"] == {"decoder": 2}


class _Breaks(torch.nn.Module):
    """Stands for a part that fails by itself, or where anything is attached."""

    def __init__(self, inner: torch.nn.Module, always: bool):
        super().__init__()
        self.inner, self.always = inner, always

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        if self.always or y.requires_grad:
            raise ZeroDivisionError("broken")
        return y


@pytest.mark.parametrize("always", [True, False])
def test_what_the_base_fails_on_by_itself_is_no_crash_of_ours(always: bool) -> None:
    model = zoo.fresh("llama").requires_grad_(False)
    model.lm_head = _Breaks(model.lm_head, always)
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    findings = Findings("Llama")
    try_spec(model, inlay.LoRA(rank=2), findings, [(model, inputs)], saves=False)
    failed = findings.base_fails if always else findings.crashed
    assert list(failed.values()) == ["ZeroDivisionError: broken"]
    assert len(findings.crashed) == (not always)
    assert not inlay.attached(model)
