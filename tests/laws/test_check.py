"""`inlay.check`: the laws on the user's own model, and a report that can be read."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers

import inlay
from inlay.errors import LawError
from inlay.laws import LAWS
from inlay.laws.case import perturb
from inlay.laws.traces import snapshot
from inlay.runtime import positions
from tests import zoo


def test_all_laws_hold_and_nothing_is_changed() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.LoRA(rank=2) + inlay.Prefix(length=2, mlp=4), name="mine")
    other = inlay.attach(model, inlay.IA3(), name="other")
    perturb(handle)
    before, tensors = snapshot(model), {n: t.clone() for n, t in handle.named_tensors().items()}
    progress: list[str] = []
    report = inlay.check(model, handle, report=progress.append)
    assert report.holds and report.require() is report
    assert progress == list(LAWS) == [finding.law for finding in report.findings]
    assert snapshot(model) == before
    assert all(torch.equal(tensors[n], t) for n, t in handle.named_tensors().items())
    assert handle.attached and handle.enabled and other.enabled
    text = str(report)
    assert "rows do not meet" in text and "LoRA(rank=2)" in text and "\x1b" not in text


def test_a_broken_law_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "with_positions", lambda stack, inputs: inputs)
    report = inlay.check(zoo.fresh("llama"), inlay.Prefix(length=2, mlp=None))
    assert not report.holds
    (finding,) = [finding for finding in report.findings if finding.law == "padding is inert"]
    assert finding.holds is False and finding.note.startswith("row 1, padded left: off by")
    with pytest.raises(LawError):
        report.require()


@pytest.mark.processor
def test_a_base_in_16_bits_is_checked_in_fp32() -> None:
    model = zoo.fresh("llama").bfloat16()
    handle = inlay.attach(model, inlay.Prompt(length=2))
    report = inlay.check(model, handle)
    assert report.holds and "on a copy in fp32" in report.subject
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("spec", "holds", "note"),
    [
        (inlay.LoRA(rank=2) + inlay.Head(labels=("a", "b")), True, ""),
        (inlay.LoRA(rank=2) + inlay.WARP(), True, ""),
        (inlay.BitFit() + inlay.Head(labels=("a", "b")), True, ""),
        (inlay.Head(), None, "it cannot be merged, and is refused: .* trained head alone"),
        (inlay.Prompt(length=2) + inlay.Head(), None, "it cannot be merged, and is refused"),
        (inlay.LoRA(rank=2) + inlay.PTuningV2(length=2), None, "it cannot be merged"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("attached", [True, False])
def test_merging_with_a_trained_head_is_no_broken_law(
    spec: Any, holds: bool | None, note: str, attached: bool
) -> None:
    """A head stays beside what is merged, also one such as WARP that changes the base's outputs."""
    model = zoo.fresh("bert")
    handle = inlay.attach(model, spec, name="mine") if attached else None
    if handle is not None:
        perturb(handle)
    report = inlay.check(model, handle or spec, laws=("merge", "no trace"))
    merge, _ = report.findings
    assert merge.holds is holds, merge.note
    assert re.match(note, merge.note)
    assert report.holds
    assert handle is None or handle.attached


def test_a_law_that_the_base_breaks_itself_is_told_apart() -> None:
    """A base whose rows meet says nothing about what is attached to it."""
    model = zoo.fresh("llama")
    model.model.norm.register_forward_hook(lambda module, args, y: y + y.mean((0, 1)))
    report = inlay.check(model, inlay.LoRA(rank=2), laws=("rows do not meet", "generation"))
    assert report.holds
    for finding in report.findings:
        assert finding.of_base and finding.holds is None
        assert finding.note.startswith("the base itself, with nothing attached")
    assert "base" in str(report)


def test_whatever_is_raised_becomes_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def law(case: Any) -> float:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setitem(LAWS, "identity", law)
    report = inlay.check(zoo.fresh("llama"), inlay.LoRA(rank=2), laws=("identity", "merge"))
    first, second = report.findings
    assert first.holds is False and first.note == "ZeroDivisionError: by nothing"
    assert second.holds


def test_a_base_that_raises_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.fresh("gpt2")

    def refuse(*args: Any, **more: Any) -> Any:
        raise ZeroDivisionError("no generation here")

    monkeypatch.setattr(model, "generate", refuse)
    (finding,) = inlay.check(model, inlay.LoRA(rank=2), laws=("generation",)).findings
    assert finding.of_base and "ZeroDivisionError: no generation here" in finding.note


@pytest.mark.parametrize("model_class", ["BertForSequenceClassification", "BertForMaskedLM"])
def test_a_trained_head_is_merged_around(model_class: str) -> None:
    """What is folded is folded, and the head stays."""
    config = transformers.BertConfig(**zoo.DIMS)
    model = getattr(transformers, model_class)(config).eval()
    head = inlay.Head(labels=("no", "yes"))
    handle = inlay.attach(model, inlay.LoRA(rank=2) + head, name="mine")
    report = inlay.check(model, handle, laws=("merge",))
    assert report.holds, report.findings
