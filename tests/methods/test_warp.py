"""WARP: label vectors where a word would be read off, and virtual tokens in the template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import inlay
from inlay.errors import SiteError, SpecError, TaskError
from inlay.laws.case import perturb
from inlay.laws.compare import relative_error
from inlay.tasks import Classify, TrainedHead, Verbalizer
from inlay.training import fit
from tests import zoo
from tests.tasks.tiny import examples, loss_of, tokenizer
from tests.training.tiny import quiet

ROWS = examples(
    *(
        {"text": f"the {word} sat", "label": label}
        for label, words in {"yes": ("cat", "dog"), "no": ("film", "plot")}.items()
        for word in words
    )
)
VERBALIZER = {"yes": "good", "no": "bad"}
ENCODERS = ("bert", "roberta", "electra", "distilbert", "modernbert", "deberta")


def words() -> Any:
    known = tokenizer("encoder")
    return tuple((known.convert_tokens_to_ids(word),) for word in VERBALIZER.values())


HEAD = TrainedHead(("yes", "no"))


def bound(
    family: str, template: str, kind: str = "encoder", by: Any = HEAD
) -> tuple[Any, Classify]:
    model = zoo.fresh(family)
    task = Classify(template=template, by=by)
    task.bind(model, tokenizer(kind))
    return model, task


@pytest.mark.parametrize("family", ENCODERS)
def test_without_virtual_tokens_it_is_the_verbalizer(family: str) -> None:
    model, hard = bound(family, "{text} was {mask}", by=Verbalizer(VERBALIZER))
    soft = Classify(template="{text} was {mask}", by=TrainedHead(("yes", "no")))
    soft.bind(model, tokenizer("encoder"))
    batch = hard.collate(hard.encode_all(ROWS))
    with torch.no_grad():
        wanted = hard.outputs(model, batch).scores
        inlay.attach(model, inlay.WARP(labels=("yes", "no"), length=0, words=words()))
        assert (
            relative_error(soft.outputs(model, soft.collate(soft.encode_all(ROWS))).scores, wanted)
            < 1e-4
        )


def test_a_decoder_is_read_behind_its_text() -> None:
    model, hard = bound("llama", "{text} was", "decoder", by=Verbalizer(VERBALIZER))
    soft = Classify(template="{text} was", by=TrainedHead(("yes", "no")))
    soft.bind(model, tokenizer("decoder"))
    known = tokenizer("decoder")
    ids = tuple((known.convert_tokens_to_ids(word),) for word in VERBALIZER.values())
    with torch.no_grad():
        wanted = hard.outputs(model, hard.collate(hard.encode_all(ROWS))).scores
        inlay.attach(model, inlay.WARP(labels=("yes", "no"), length=0, words=ids))
        assert (
            relative_error(soft.outputs(model, soft.collate(soft.encode_all(ROWS))).scores, wanted)
            < 1e-4
        )


@pytest.mark.parametrize(("family", "kind"), [("bert", "encoder"), ("llama", "decoder")])
def test_the_words_of_p_tuning_s_labels_can_learn_too(family: str, kind: str) -> None:
    end = " {mask}" if kind == "encoder" else ""
    template = "{p} {text} {p}" + end
    model, hard = bound(family, template, kind, by=Verbalizer(VERBALIZER))
    soft = Classify(template=template, by=TrainedHead(("yes", "no")))
    soft.bind(model, tokenizer(kind))
    known = tokenizer(kind)
    ids = tuple((known.convert_tokens_to_ids(word),) for word in VERBALIZER.values())
    spec = inlay.PTuning(length=2) + inlay.WARP(labels=("yes", "no"), length=0, words=ids)
    handle = inlay.attach(model, spec)
    with torch.no_grad():
        wanted = hard.outputs(model, hard.collate(hard.encode_all(ROWS))).scores
        assert (
            relative_error(soft.outputs(model, soft.collate(soft.encode_all(ROWS))).scores, wanted)
            < 1e-4
        )
    before = handle.training_state()
    before = {name: tensor.clone() for name, tensor in before.items()}
    fit(model, handle, soft, ROWS, steps=2, lr=0.1, console=quiet())
    after = handle.training_state()
    assert all(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_it_learns_prompts_and_labels_and_nothing_else(family: str, tmp_path: Path) -> None:
    model, task = bound(family, "{p*2} {text} {p} {mask}")
    handle = inlay.attach(model, inlay.WARP(labels=("yes", "no"), length=3))
    assert handle.count() == (3 + 2) * 32 + 2
    base = {n: p.clone() for n, p in model.named_parameters() if not n.startswith("inlays")}
    before = [p.clone() for p in handle.parameters()]
    batch = task.collate(task.encode_all(ROWS))
    with torch.no_grad():
        start = loss_of(task, model, batch)[0]
    fit(model, handle, task, ROWS, steps=60, batch_size=4, lr=0.05)
    assert all(not torch.equal(a, b) for a, b in zip(before, handle.parameters(), strict=True))
    for name, parameter in base.items():
        assert torch.equal(parameter, model.get_parameter(name)), name
    with torch.no_grad():
        assert loss_of(task, model, batch)[0] < start
        logits = task.outputs(model, batch).scores
        path = handle.save(tmp_path / "w.safetensors")
        handle.detach()
        inlay.load(model, path)
        assert torch.equal(task.outputs(model, batch).scores, logits)


def test_rows_of_one_batch_have_their_own_labels() -> None:
    model, task = bound("bert", "{p} {text} {mask}")
    for number, name in enumerate("ab"):
        torch.manual_seed(number)
        perturb(inlay.attach(model, inlay.WARP(labels=("yes", "no"), length=1), name=name))
    batch = task.collate(task.encode_all(ROWS))
    with torch.no_grad():
        with inlay.rows(model, ["a", "b", "a", "b"]):
            mixed = task.outputs(model, batch).scores
        for name, start in (("a", 0), ("b", 1)):
            with inlay.rows(model, [name]):
                assert (
                    relative_error(task.outputs(model, batch).scores[start::2], mixed[start::2])
                    < 1e-4
                )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(SpecError, match="2 belong"):
        inlay.WARP(words=((1,),))
    with pytest.raises(SiteError, match="encoder–decoder"):
        inlay.attach(zoo.fresh("t5"), inlay.WARP())
    model, task = bound("bert", "{text} {mask}")
    inlay.attach(model, inlay.WARP(labels=("no", "yes"), length=0))
    with pytest.raises(TaskError, match="'no', 'yes'"):
        task.outputs(model, task.collate(task.encode_all(ROWS)))
    with pytest.raises(TaskError, match="in an encoder only"):
        bound("llama", "{text} {mask}", "decoder")
