"""The auxiliary loss: a row's own text, beside the task."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch

import inlay
from inlay import Head, LoRA, Prompt, PTuning
from inlay.errors import TaskError
from inlay.tasks import Classify, Generate, TrainedHead, Verbalizer, auxiliary, from_spec
from inlay.tasks.scorer import ClassifyBatch
from inlay.training import evaluate, fit
from tests import zoo
from tests.tasks.tiny import examples, loss_of, tokenizer
from tests.training import tiny

WORDS = {"yes": "good", "no": "bad"}
TEXTS = examples(
    {"source": "the cat sat on the mat", "target": "one two three"},
    {"source": "a film", "target": "four"},
    {"source": "the plot was dull", "target": "five six"},
)
OPENING = "one two three four five six seven eight nine ten"  # long enough to run once for all rows
REVIEWS = examples(
    {"text": "the cat sat on the big red mat", "label": "yes"},
    {"text": "a film", "label": "no"},
    {"text": "the plot it was very dull and old", "label": "no"},
)
V = 99


def bound(task: Any, family: str, kind: str) -> tuple[Any, Any]:
    model = zoo.fresh(family).requires_grad_(False)
    task.bind(model, tokenizer(kind))
    return model, task.collate(task.encode_all(REVIEWS if task.name == "classify" else TEXTS))


def moved(model: Any, spec: Any) -> inlay.Inlay:
    """An inlay that is not at its start, where it may do nothing."""
    torch.manual_seed(0)
    handle = inlay.attach(model, spec)
    with torch.no_grad():
        for parameter in handle.parameters():
            parameter.normal_(0, 0.3)
    return handle


def logs(model: Any, batch: Any, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities from the model's own forward pass, `[B, T, V]`."""
    out = model(input_ids=ids, attention_mask=batch.inputs["attention_mask"])
    return out.logits.float().log_softmax(-1)


def by_hand(share: float, task: Any, batch: Any, said: torch.Tensor, asked: list) -> torch.Tensor:
    """`(1 - a) · task + a · Σ n · mean`, row by row. asked: (place read, token) of every row."""
    total = torch.zeros(())
    width = batch.inputs["input_ids"].shape[1]
    for number, own in enumerate(asked):
        at = [int(p) % width for p in batch.positions if int(p) // width == number]
        if task.name == "classify":
            worth = said[number, at[0], task.scorer.ids].log_softmax(-1)
            losses = [-worth[batch.labels[number]]]
        else:
            first = sum(int(p) // width < number for p in batch.positions)
            targets = batch.targets[first : first + len(at)]
            losses = [-said[number, p, t] for p, t in zip(at, targets, strict=True)]
        text = [-said[number, place, token] for place, token in own]
        mean = sum(text) / len(text) if text else 0.0
        total = total + (1 - share) * sum(losses) + share * len(losses) * mean
    return total


def following(batch: Any) -> list:
    """What a decoder is asked: every token but the first, unless it is padding or virtual."""
    rows = zip(
        batch.inputs["input_ids"].tolist(), batch.inputs["attention_mask"].tolist(), strict=True
    )
    return [
        [(place - 1, ids[place]) for place in range(1, sum(mask)) if ids[place] < V]
        for ids, mask in rows
    ]


def equal(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "spec"),
    [
        (Generate(auxiliary_weight=0.3), LoRA(rank=2)),
        (Generate(auxiliary_weight=0.3), Prompt(length=3)),
        (Generate(auxiliary_weight=0.3, template=OPENING + " {source}"), Prompt(length=3)),
        (Generate(auxiliary_weight=0.3, template="{p*2} {source} {p}"), PTuning(length=3)),
        (Classify(template="{text} was", by=Verbalizer(WORDS, 0.3)), Prompt(length=3)),
        (
            Classify(template="{p*2} {text} {p} was", by=Verbalizer(WORDS, 0.3)),
            PTuning(length=3),
        ),
    ],
)
def test_a_decoder_predicts_all_that_it_reads(task, spec):
    model, batch = bound(task, "llama", "decoder")
    handle = moved(model, spec)
    asked = following(batch)
    assert all(asked) and len({len(own) for own in asked}) > 1
    wanted = by_hand(0.3, task, batch, logs(model, batch, batch.inputs["input_ids"]), asked)
    found, count = loss_of(task, model, batch)
    equal(found, wanted)
    assert count == len(batch.positions)
    learned = list(handle.parameters())
    for a, b in zip(*(torch.autograd.grad(loss, learned) for loss in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def hidden_ones(batch: Any, read: torch.Tensor, asked: Any) -> list:
    """(place, token) of what an encoder is asked, row by row."""
    width = batch.inputs["input_ids"].shape[1]
    pairs = zip(asked.positions.tolist(), asked.tokens.tolist(), strict=True)
    found: list = [[] for _ in read]
    for position, token in pairs:
        assert token == batch.inputs["input_ids"].flatten()[position]
        found[position // width].append((position % width, token))
    return found


@pytest.mark.parametrize("share", [1e-4, 0.5])
@pytest.mark.parametrize(
    ("template", "spec"),
    [
        ("{text} was {mask}", LoRA(rank=2)),
        ("{text} was {mask}", Prompt(length=3)),
        ("{p*2} {text} {p} {mask}", PTuning(length=3)),
    ],
)
def test_an_encoder_predicts_what_is_hidden_from_it(template, spec, share, monkeypatch):
    monkeypatch.setattr(auxiliary, "SELECTED", 0.4)
    task = Classify(template=template, by=Verbalizer(WORDS, share))
    model, batch = bound(task, "bert", "encoder")
    moved(model, spec)
    torch.manual_seed(3)
    seen, asked = auxiliary.language_model_targets(task.bound, batch.inputs, batch.positions)
    read = seen["input_ids"]
    assert not torch.equal(read, batch.inputs["input_ids"])
    chosen = hidden_ones(batch, read, asked)
    assert sum(map(len, chosen)) > 3
    wanted = by_hand(share, task, batch, logs(model, batch, read), chosen)
    torch.manual_seed(3)
    equal(loss_of(task, model, batch)[0], wanted)


def test_what_is_hidden_is_15_percent_of_plain_tokens_80_10_10():
    task = Classify(template="{text} {mask}", by=Verbalizer(WORDS, 0.5))
    bound(task, "bert", "encoder")
    words = task.bound.tokenizer
    torch.manual_seed(0)
    ids = torch.randint(5, V, (400, 200))  # behind the special tokens
    ids[:, 0], ids[:, -1], ids[:, 7] = words.bos_token_id, words.eos_token_id, words.mask_token_id
    ids[:, 9:12] = V + torch.arange(3)
    mask = torch.ones_like(ids)
    mask[200:, 150:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    batch = ClassifyBatch(inputs, torch.arange(400) * 200 + 7)
    seen, asked = auxiliary.language_model_targets(task.bound, batch.inputs, batch.positions)
    read = seen["input_ids"]
    where = torch.zeros(ids.numel(), dtype=torch.bool)
    where[asked.positions] = True
    where = where.view_as(ids)
    assert torch.equal(batch.inputs["input_ids"], ids), "the batch itself stays"
    assert torch.equal(read[~where], ids[~where])
    assert not where[:, [0, 7, 9, 10, 11, 199]].any() and not where[200:, 150:].any()
    free = int(mask.sum()) - 400 * 5 - 200
    assert where.sum() / free == pytest.approx(0.15, abs=0.01)
    shown = read[where]
    as_mask, same = (shown == words.mask_token_id).float(), (shown == ids[where]).float()
    assert as_mask.mean() == pytest.approx(0.8, abs=0.02)
    assert same.mean() == pytest.approx(0.1, abs=0.02)
    assert shown.max() < len(words)


@pytest.mark.parametrize(
    ("task", "family", "kind"),
    [
        (Generate, "llama", "decoder"),
        (Classify, "bert", "encoder"),
        (Classify, "llama", "decoder"),
    ],
)
def test_off_and_in_evaluation_it_is_the_tasks_loss_and_draws_nothing(task, family, kind):
    mask = " {mask}" if kind == "encoder" else ""
    told = {"template": "{text} was" + mask}
    plain, mixed = (
        Generate(auxiliary_weight=weight)
        if task is Generate
        else Classify(**told, by=Verbalizer(WORDS, weight))
        for weight in (0.0, 0.5)
    )
    model, batch = bound(plain, family, kind)
    mixed.bind(model, tokenizer(kind))
    moved(model, LoRA(rank=2))
    before = torch.get_rng_state()
    off, count = loss_of(plain, model, batch)
    with torch.no_grad():
        evaluation, same = loss_of(mixed, model, batch)
    assert torch.equal(off, evaluation) and count == same
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(off, loss_of(mixed, model, batch)[0])
    rows = REVIEWS if task is Classify else TEXTS
    assert evaluate(model, plain, rows) == evaluate(model, mixed, rows)


def test_losses_add_up_over_batches():
    task = Generate(auxiliary_weight=0.3)
    model, batch = bound(task, "gpt2", "decoder")
    rows = task.encode_all(TEXTS)
    apart = sum(loss_of(task, model, task.collate([row]))[0] for row in rows)
    equal(loss_of(task, model, batch)[0], apart)


def test_a_stopped_run_draws_the_same_as_one_in_one_piece(tmp_path):
    def train(folder: Any, press: int | None = None) -> Any:
        task = Classify(template="{text} was {mask}", by=Verbalizer(WORDS, 0.5))
        model, _ = bound(task, "bert", "encoder")
        torch.manual_seed(0)
        handle = inlay.attach(model, LoRA(rank=2))
        loss, calls = task.loss, []

        def counted(*given: Any) -> Any:
            calls.append(1)
            if len(calls) == press:
                signal.raise_signal(signal.SIGINT)
            return loss(*given)

        task.loss = counted  # type: ignore[method-assign]
        result = fit(model, handle, task, REVIEWS, steps=5, batch_size=2, folder=folder,
                     base_lr=1e-3, console=tiny.quiet())  # fmt: skip
        return tiny.numbers(result), tiny.state(handle)

    whole, unbroken = train(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", 2)
    result, resumed = train(tmp_path / "b")
    assert result == whole
    assert tiny.same(resumed, unbroken)


def test_refusals():
    worded = Classify(template="{text} was", by=Verbalizer(WORDS, 0.1))
    for task in (Generate(auxiliary_weight=0.1), worded):
        with pytest.raises(TaskError, match="needs a decoder or an encoder"):
            bound(task, "t5", "encoder-decoder")
    with pytest.raises(TaskError, match="no field 'auxiliary_weight'"):
        from_spec({"task": "classify", "by": {"kind": "trained_head", "auxiliary_weight": 0.1}})
    for wrong in (-0.1, 1.0, float("nan"), "half"):
        with pytest.raises(TaskError, match="auxiliary_weight="):
            Generate(auxiliary_weight=wrong)
    assert Classify(by=TrainedHead(("a", "b"))).head() == Head(labels=("a", "b"))
