"""The script over all architectures: it builds, attaches, runs and counts."""

from __future__ import annotations

import pytest

from tests.every.examine import examples, message_kind
from tests.every_architecture import classes, examined, summary

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
