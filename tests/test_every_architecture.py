"""The script over all architectures: it builds, attaches, runs and counts."""

from __future__ import annotations

import json
import re

import pytest

from tests.every.examine import examples, message_kind
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


CRASHES = 1
"""Specs that crash in what is stored: LST on DeepSeek-V4, whose text has other keys than queries."""

SHARE = 0.8
"""How many of the classes an examination had reached when it was stored."""


def test_what_is_stored_is_of_these_classes_and_names_every_crash() -> None:
    stored = json.loads(STORED.read_text())
    names = {name for _, _, name in classes()}
    examined_names = set(stored["by class"]) | set(stored["not built"])
    assert examined_names <= names and len(examined_names) >= SHARE * len(names)
    assert stored["specs that crash"] <= CRASHES
    assert not re.search(r"/work|/tmp|/home|/usr|\.venv|site-packages", STORED.read_text())
    assert f"specs that crash: {stored['specs that crash']}" in counts(stored).splitlines()
