"""The base learns along with an inlay, or alone."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import inlay
from inlay import LoRA, Prefix, Prompt, PTuning
from inlay.errors import TrainingError
from inlay.tasks import Classify, Generate, Verbalizer
from inlay.training import Subtask, fit, fit_multitask, tune
from inlay.training.loop.full_model import base_parameters, save_base
from tests import zoo
from tests.tasks.tiny import examples, loss_of, tokenizer
from tests.training import tiny

from .test_checkpoint import Stopping, log

PLAIN = {"clip": None, "dropout": False, "schedule": "constant", "warmup": 0.0, "steps": 1}
TEXTS = examples(
    {"source": "the cat sat", "target": "one two"}, {"source": "a film", "target": "three"}
)
OPENING = "one two three four five six seven eight nine ten"  # long enough to run once for all rows
REVIEWS = examples({"text": "the cat", "label": "a"}, {"text": "the big film", "label": "b"})


def numbers(model):
    return {name: p.detach().clone() for name, p in base_parameters(model).items()}


def stepped(model, loss, lr):
    """One step of plain PyTorch."""
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    loss.backward()
    optimizer.step()


def labelled_loss(model, task):
    """The mean loss of all targets, by the model's own `labels`."""
    batch = task.collate(task.encode_all(TEXTS))
    width = batch.inputs.get("decoder_input_ids", batch.inputs["input_ids"]).shape[1]
    labels = torch.full((len(TEXTS), width), -100).flatten()
    labels[batch.positions] = batch.targets
    labels = labels.view(len(TEXTS), width)
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    if "decoder_input_ids" in batch.inputs:
        return model(**inputs, labels=labels).loss
    shifted = F.pad(labels, (1, 0), value=-100)  # a decoder predicts the following token
    inputs = {name: F.pad(tensor, (0, 1)) for name, tensor in inputs.items()}
    return model(**inputs, labels=shifted).loss


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "decoder"), ("gpt2", "decoder"), ("t5", "encoder-decoder"),
     ("bart", "encoder-decoder")],
)  # fmt: skip
def test_one_step_is_that_of_plain_full_fine_tuning(family, kind, monkeypatch):
    model, plain = zoo.fresh(family), zoo.fresh(family)
    task = Generate(template=f"{OPENING} {{source}}")
    task.bind(model, tokenizer(kind))
    recorded = gradients(monkeypatch)
    stepped(plain, labelled_loss(plain, task), 1e-3)
    tune(model, task, TEXTS, base_lr=1e-3, **PLAIN)
    compare(recorded, model, plain)


def test_one_step_of_an_encoder_is_that_of_plain_full_fine_tuning(monkeypatch):
    model, plain = zoo.fresh("bert"), zoo.fresh("bert")
    task = Classify(template="{text} was {mask}", by=Verbalizer({"a": "good", "b": "bad"}))
    task.bind(model, tokenizer("encoder"))
    recorded = gradients(monkeypatch)
    batch = task.collate(task.encode_all(REVIEWS))
    logits = plain(batch.inputs["input_ids"], attention_mask=batch.inputs["attention_mask"]).logits
    logits = logits.flatten(0, 1)[batch.positions][:, task.scorer.ids]
    stepped(plain, F.cross_entropy(logits, batch.labels), 1e-3)
    tune(model, task, REVIEWS, base_lr=1e-3, **PLAIN)
    compare(recorded, model, plain)


def gradients(monkeypatch):
    """What the optimiser of a run is given, as it steps."""
    recorded = []
    true = torch.optim.AdamW.step

    def step(self, *args):
        recorded.append([p.grad.clone() for g in self.param_groups for p in g["params"]
                     if p.grad is not None])  # fmt: skip
        return true(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return recorded


def compare(recorded, model, plain):
    """Gradients of plain PyTorch and of the run; and the numbers, where these tell the direction.

    A first step of AdamW goes by the sign of the gradient, and some gradients are 0 but for
    rounding: a bias of keys changes nothing.
    """
    expected, actual = recorded
    learned = [name for name, p in plain.named_parameters() if p.grad is not None]
    parameters, reference = dict(model.named_parameters()), dict(plain.named_parameters())
    assert len(actual) == len(expected) == len(learned) > 10
    for name, a, b in zip(learned, actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        clear = b.abs() > 1e-4
        torch.testing.assert_close(
            parameters[name][clear], reference[name][clear], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("spec", [LoRA(rank=2) + Prompt(length=2), Prefix(length=2)])
def test_base_and_pieces_learn_jointly(family, spec):
    model = zoo.fresh(family)
    task = Generate()
    task.bind(model, tokenizer("decoder" if family == "llama" else "encoder-decoder"))
    other = inlay.attach(model, LoRA(rank=2), name="other")
    handle = inlay.attach(model, spec, name="mine")
    start, pieces, rest = numbers(model), tiny.state(handle), tiny.state(other)
    learned = {name: p.requires_grad for name, p in model.named_parameters()}
    fit(model, handle, task, TEXTS, steps=2, base_lr=1e-3)
    assert not any(torch.equal(start[name], now) for name, now in numbers(model).items())
    assert not tiny.same(pieces, tiny.state(handle))
    assert tiny.same(rest, tiny.state(other))
    assert learned == {name: p.requires_grad for name, p in model.named_parameters()}
    now = numbers(model)
    fit(model, handle, task, TEXTS, steps=2)
    assert all(torch.equal(now[name], p) for name, p in numbers(model).items()), "frozen again"


def test_each_learns_at_its_own_rate():
    model, handle = tiny.attached(LoRA(rank=2))
    task = tiny.task(model)
    start = numbers(model)
    result = fit(model, handle, task, tiny.examples(4), base_lr=1e-4, lr=1e-2,
                 console=tiny.quiet(), **PLAIN)  # fmt: skip
    assert result.lr == 1e-2
    moved = {name: (now - start[name]).abs().max() for name, now in numbers(model).items()}
    assert 0.9e-4 < max(moved.values()) < 1.1e-4


def test_tuning_leaves_the_model_as_it_was_but_for_its_numbers():
    model = tiny.base()
    names = list(model.state_dict())
    model.model.norm.weight.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    start = numbers(model)
    tune(model, tiny.task(model), tiny.examples(4), base_lr=1e-3, steps=1, console=tiny.quiet())
    assert list(model.state_dict()) == names and not inlay.attached(model)
    assert before == {name: p.requires_grad for name, p in model.named_parameters()}
    assert not torch.equal(start["model.norm.weight"], model.model.norm.weight)


def train(folder=None, presses=(), **options):
    model, handle = tiny.attached()
    task = tiny.task(model, Stopping)
    task.presses = presses
    if folder is not None:
        options["checkpoint_every"] = 1
    result = fit(
        *(model, handle, task, tiny.examples(20)),
        dev=tiny.examples(4, seed=1),
        folder=folder,
        console=tiny.quiet(),
        **{"batch_size": 3, "epochs": 2, "eval_every": 3, "base_lr": 1e-3, **options},
    )
    return result, {**numbers(model), **tiny.state(handle)}


@pytest.mark.parametrize("press", [1, 6, 12])
def test_ctrl_c_and_then_on_is_the_same_as_in_one_piece(tmp_path, press):
    whole, unbroken = train(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", presses=(press,))
    result, resumed = train(tmp_path / "b")
    assert tiny.numbers(result) == tiny.numbers(whole)
    assert tiny.same(resumed, unbroken)
    assert log(tmp_path / "a") == log(tmp_path / "b")
    with pytest.raises(TrainingError, match="base_lr was 0.001 and is 0.002|lr was"):
        train(tmp_path / "b", base_lr=2e-3)


def test_the_best_base_is_kept():
    model, handle = tiny.attached()
    task = tiny.task(model, tiny.Scripted, script=(1.0, 3.0, 2.0))
    options = {"base_lr": 1e-3, "schedule": "constant", "warmup": 0.0, "eval_every": 1}
    rows = tiny.examples(4)
    fit(model, handle, task, rows, dev=rows, steps=3, console=tiny.quiet(), **options)
    best, (second_model, other) = numbers(model), tiny.attached()
    fit(second_model, other, tiny.task(second_model), rows, steps=2, console=tiny.quiet(),
        base_lr=1e-3, schedule="constant", warmup=0.0)  # fmt: skip
    assert tiny.same(best, numbers(second_model))


def test_a_loss_that_is_not_finite_leaves_the_base_as_it_was():
    model, handle = tiny.attached()
    task = tiny.task(model)
    with torch.no_grad():
        model.lm_head.weight[3] = float("inf")
    start = numbers(model)
    with pytest.raises(TrainingError, match="not finite"):
        fit(model, handle, task, tiny.examples(4), base_lr=1.0, console=tiny.quiet())
    assert tiny.same(start, numbers(model))
    assert not any(p.requires_grad for p in base_parameters(model).values())


def test_a_base_in_half_precision_is_refused():
    model, handle = tiny.attached(model=tiny.base().bfloat16())
    with pytest.raises(TrainingError, match="is bfloat16, .* load the base with dtype float32"):
        fit(model, handle, tiny.task(model), tiny.examples(4), base_lr=1e-5)
    with pytest.raises(TrainingError, match="bfloat16"):
        tune(model, tiny.task(model), tiny.examples(4), base_lr=1e-5)
    assert list(inlay.attached(model)) == ["default"]


def test_a_mixture_refuses():
    model, handle = tiny.attached()
    subtask = Subtask(tiny.task(model), tiny.examples(4), (handle,))
    with pytest.raises(TrainingError, match="leave base_lr out"):
        fit_multitask(model, [subtask], steps=1, base_lr=1e-5)


@pytest.mark.parametrize(("family", "kind"), [("llama", "decoder"), ("gpt2", "decoder"),
                                              ("t5", "encoder-decoder")])  # fmt: skip
def test_a_saved_base_and_its_inlay_compute_the_same(family, kind, tmp_path):
    model, words = zoo.fresh(family), tokenizer(kind)
    template = "{source}" if kind == "encoder-decoder" else "{p*2} {source}"
    task = Generate(template=template)
    task.bind(model, words)
    spec = LoRA(rank=2) if kind == "encoder-decoder" else LoRA(rank=2) + PTuning(length=2)
    handle = inlay.attach(model, spec)
    fit(model, handle, task, TEXTS, steps=2, base_lr=1e-2)
    for _ in range(2):  # the second replaces the first
        folder = save_base(model, words, tmp_path / "base")
    file = handle.save(tmp_path / "default.safetensors", tokenizer=words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "default.safetensors"]
    assert not any(key.startswith("inlays.") for key in load_file(folder / "model.safetensors"))
    assert "inlay" not in (folder / "config.json").read_text()
    loaded = type(model).from_pretrained(folder)
    assert tiny.same(numbers(model), numbers(loaded))
    with pytest.raises(inlay.errors.BaseError):
        inlay.load(zoo.fresh(family), file)
    inlay.load(loaded, file)
    batch = task.collate(task.encode_all(TEXTS))
    with torch.no_grad():
        loss, loaded_loss = loss_of(task, model, batch)[0], loss_of(task, loaded.eval(), batch)[0]
    torch.testing.assert_close(loss, loaded_loss, rtol=0, atol=0)
