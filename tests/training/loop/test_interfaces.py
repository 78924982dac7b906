"""What a method may ask of a training step: a penalty, several passes, a schedule, groups."""

import copy
import json

import pytest
import torch
import transformers as hf
from torch.nn.utils import clip_grad_norm_

import inlay
from inlay import LoRA
from inlay.errors import TrainingError
from inlay.tasks.outputs import TokenStates
from inlay.training import fit, fit_multitask, tune
from inlay.training.loop.objective import batch_loss, consistency
from inlay.training.multitask import Subtask
from tests.training import tiny
from tests.training.loop.test_checkpoint import Stopping, log
from tests.training.methods import Compared, Grouped, Penalised, Pruned

PLAIN = {"batch_size": 8, "epochs": 1, "warmup": 0.0, "schedule": "constant"}


def gpt2():
    """A base that computes in double precision throughout; Llama's norms do not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 31, "n_positions": 16}
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        model = hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, **off)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0, 0.3)
        return model


def attached(spec, *, double=True, **options):
    model, handle = tiny.attached(spec, model=gpt2() if double else tiny.base(), **options)
    if double:
        model.double()
    return model, handle


def train(model, handle, *, data=8, task=None, **options):
    options = {**PLAIN, "console": tiny.quiet(), **options}
    task = tiny.task(model) if task is None else task
    return fit(model, handle, task, tiny.examples(data), **options)


@pytest.fixture
def gradients(monkeypatch):
    """The gradients of every step of the optimiser, by the number of the parameter."""
    steps = []
    step = torch.optim.AdamW.step

    def recording(self, *args):
        parameters = [p for group in self.param_groups for p in group["params"]]
        steps.append([p.grad.clone() for p in parameters if p.grad is not None])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    return steps


def by_hand(model, handle, *, rows, clip):
    """The gradients, the loss and the norm of one step over all rows as one batch."""
    task = tiny.task(model)
    batch = task.collate(task.encode_all(tiny.examples(rows)))
    model.train()
    loss, count = task.loss(task.outputs(model, batch), batch)
    mean = loss / count + handle.penalty()
    mean.backward()
    norm = clip_grad_norm_(handle.parameters(), clip)
    return [p.grad for p in handle.parameters()], mean.item(), float(norm)


@pytest.mark.parametrize("clip", [1e9, 0.05])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(8, 1), (2, 4), (3, 3), (1, 8)])
def test_a_penalty_weighs_one_per_step(gradients, tmp_path, batch_size, accumulate, clip):
    spec = LoRA(rank=2) + Penalised(weight=0.7)
    expected, loss, norm = by_hand(*attached(spec), rows=8, clip=clip)
    model, handle = attached(spec)
    size = {"batch_size": batch_size, "accumulate": accumulate, "clip": clip}
    result = train(model, handle, folder=tmp_path, **size)
    assert result.steps == len(gradients) == 1
    for actual, gradient in zip(gradients[0], expected, strict=True):
        # by hand the norm gets 1e-6 added before clipping
        torch.testing.assert_close(actual, gradient, rtol=1e-10 if clip > 1 else 1e-4, atol=1e-12)
    (line,) = log(tmp_path)
    assert result.loss == line["loss"] == pytest.approx(loss, rel=1e-6)
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-6)
    sizes = [
        p.square().sum() for name, p in attached(spec)[1].named_tensors().items() if "/s" in name
    ]
    assert line["penalty"] == pytest.approx(0.7 * float(sum(sizes)), rel=1e-6)


def test_without_a_penalty_the_log_has_none(tmp_path):
    train(*attached(LoRA(rank=2)), folder=tmp_path)
    assert "penalty" not in log(tmp_path)[0]


def test_a_penalty_of_the_inlay_when_the_base_learns_too(gradients):
    model, handle = attached(Penalised())
    plain, other = copy.deepcopy(model), handle.spec
    train(model, handle, base_lr=1e-3, clip=None)
    named = inlay.attached(plain)["default"]
    assert named.spec == other
    expected, _, _ = by_hand(plain, named, rows=8, clip=1e9)
    for actual, gradient in zip(gradients[0], expected, strict=False):  # the base comes after
        torch.testing.assert_close(actual, gradient, rtol=1e-10, atol=1e-12)


def test_penalties_of_inlays_that_learn_together_add_up(gradients):
    model, shared = attached(Penalised(), name="shared")
    _, second = tiny.attached(Penalised(weight=0.1), model=model, name="own")
    model.double()
    reference = copy.deepcopy(model)
    tasks = [tiny.task(model) for _ in range(2)]
    subtasks = [
        Subtask(tasks[0], tiny.examples(4), (shared,)),
        Subtask(tasks[1], tiny.examples(4, seed=1), (shared, second)),
    ]
    fit_multitask(model, subtasks, **{**PLAIN, "clip": None, "console": tiny.quiet()})
    total, count = 0, 0
    copies = inlay.attached(reference)
    reference.train()
    for names, seed in ((("shared",), 0), (("shared", "own"), 1)):
        task = tiny.task(reference)
        batch = task.collate(task.encode_all(tiny.examples(4, seed=seed)))
        with inlay.rows(reference, [names]):
            loss, counted = task.loss(task.outputs(reference, batch), batch)
        total, count = total + loss, count + counted
    penalty = copies["shared"].penalty() + copies["own"].penalty()
    (total / count + penalty).backward()
    expected = [p.grad for name in ("shared", "own") for p in copies[name].parameters()]
    for actual, gradient in zip(gradients[0], expected, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-10, atol=1e-12)


def test_a_penalty_that_is_not_finite_stops_before_the_step():
    model, handle = attached(Penalised(weight=float("inf")))
    before = tiny.state(handle)
    with pytest.raises(TrainingError, match="step 1: the penalty of the inlay is not finite"):
        train(model, handle)
    assert tiny.same(before, tiny.state(handle))


# ----------------------------------------------------------------------------------- passes


class Places(tiny.Recite):
    """`Recite` whose states are those of the tokens that count."""

    name = "places"
    runs = 0

    def outputs(self, model, batch):
        self.runs += 1
        states = super().outputs(model, batch)
        counts = batch.inputs["input_ids"][:, 1:] != 0
        return TokenStates(states.chart, model, states.hidden[:, :-1][counts])

    def losses(self, outputs, batch):
        targets = batch.inputs["input_ids"][:, 1:]
        logits = outputs.chart.logits(outputs.model, outputs.hidden)
        loss = torch.nn.functional.cross_entropy(logits, targets[targets != 0], reduction="none")
        return loss, targets != 0


del inlay.tasks.TASKS["places"]


def divergence(a, b):
    """The mean symmetrised KL of two rows of logits, by its definition."""
    a, b = a.log_softmax(-1), b.log_softmax(-1)
    return (a.exp() * (a - b) + b.exp() * (b - a)).sum(-1).mean() / 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_of_several_passes_is_that_by_hand(gradients, checkpointing):
    spec = Compared(weight=3.0)
    model, handle = attached(spec)
    reference, reference_handle = attached(spec)
    if checkpointing:
        model.activation_checkpointing_enable()
    task = tiny.task(model, Places)
    result = train(model, handle, task=task, seed=5, clip=None)
    assert task.runs == 3
    task = tiny.task(reference, Places)
    reference.train()
    torch.manual_seed(5)
    batch = task.collate(order_of(task))
    outputs = [task.outputs(reference, batch) for _ in range(3)]
    logits = [output.chart.logits(reference, output.hidden) for output in outputs]
    loss, count = task.loss(outputs[0], batch)
    mean_divergence = (divergence(logits[0], logits[1]) + divergence(logits[0], logits[2])) / 2
    mean = loss / count + 3 * mean_divergence
    mean.backward()
    assert mean_divergence.item() > 1e-6
    assert result.loss == pytest.approx(mean.item(), rel=1e-6)
    for actual, gradient in zip(
        gradients[0], [p.grad for p in reference_handle.parameters()], strict=True
    ):
        torch.testing.assert_close(actual, gradient, rtol=1e-8, atol=1e-12)


def order_of(task):
    """The rows in the order in which the loop takes them."""
    from inlay.training.loop.batches import shuffled_batches

    rows = task.encode_all(tiny.examples(8))
    (batch,) = shuffled_batches([len(row) for row in rows], rows=8, tokens=None, seed=5, epoch=0)
    return [rows[number] for number in batch]


def test_equal_methods_compare_passes_once():
    value = torch.tensor(2.0)
    assert consistency(Compared() + Compared(), value) == 4
    assert consistency(Compared() + Compared(weight=1.0) + LoRA(), value) == 6


def test_one_pass_is_the_loss_of_the_task():
    model, handle = attached(LoRA(rank=2))
    task = tiny.task(model, Places)
    batch = task.collate(task.encode_all(tiny.examples(4)))
    loss, count = batch_loss(model, task, handle.spec, batch)
    expected, number = task.loss(task.outputs(model, batch), batch)
    assert (loss.item(), count) == (expected.item(), number)


# --------------------------------------------------------------------------------- schedule


def pruned():
    return Pruned(weight=0.1) + LoRA(rank=2, dropout=0.2)


def test_progress_goes_from_0_to_1():
    model, handle = attached(pruned(), double=False)
    train(model, handle, data=20, batch_size=2, accumulate=3, epochs=None, steps=7)
    for placed in handle.placed:
        if isinstance(placed.method, Pruned):
            assert float(placed.piece.progress) == 1.0
            assert int(placed.piece.steps) == 7
            assert float(placed.piece.mask.mean()) == pytest.approx(0.5, abs=0.05)


def test_progress_by_epochs_ends_at_1_too():
    model, handle = attached(pruned(), double=False)
    result = train(model, handle, data=7, batch_size=2, epochs=3)
    assert result.steps == 12
    assert float(handle.placed[0].piece.progress) == 1.0


@pytest.mark.parametrize("base_lr", [None, 1e-4])
@pytest.mark.parametrize("press", [1, 7, 20])
def test_a_schedule_goes_on_bit_for_bit(tmp_path, press, base_lr):
    def run(folder, presses=()):
        model, handle = attached(pruned(), double=False)
        task = tiny.task(model, Stopping)
        task.presses = presses
        options = {"data": 24, "batch_size": 3, "accumulate": 2, "epochs": 3, "eval_every": 5}
        options |= {"dev": tiny.examples(4, seed=1), "keep_best": False, "base_lr": base_lr}
        result = train(model, handle, task=task, folder=folder, checkpoint_every=1, **options)
        return result, tiny.state(handle)

    whole, unbroken = run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", presses=(press,))
    result, resumed = run(tmp_path / "b")
    assert tiny.numbers(result) == tiny.numbers(whole)
    assert tiny.same(resumed, unbroken)
    assert log(tmp_path / "a") == log(tmp_path / "b")
    assert any("mask" in name and not t.all() for name, t in resumed.items())


# ----------------------------------------------------------------------------------- groups


def test_groups_have_their_own_learning_rate_and_weight_decay(tmp_path, monkeypatch):
    groups = []
    step = torch.optim.AdamW.step

    def recording(self, *args):
        groups.append([(g["lr"], g["weight_decay"], len(g["params"])) for g in self.param_groups])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    model, handle = attached(Grouped(), double=False)
    train(model, handle, lr=0.01, weight_decay=0.1, folder=tmp_path)
    assert groups == [[(0.01, 0.1, 2), (0.1, 0.5, 2)]]
    (line,) = log(tmp_path)
    assert (line["lr"], line["lr/0"], line["lr/1"]) == (0.1, 0.01, 0.1)
    second_model, other = attached(Grouped(), double=False)
    with pytest.raises(TrainingError, match=r"weight_decay was \[0.1, 0.5\] and is \[0.2, 0.5\]"):
        train(second_model, other, lr=0.01, weight_decay=0.2, folder=tmp_path)
    model, _ = tiny.attached(Grouped())
    with pytest.raises(TrainingError, match=r"lr was \[0.01, 0.1\] and is \[0.02, 0.2\]"):
        train(second_model, other, lr=0.02, weight_decay=0.1, folder=tmp_path)


def test_full_fine_tuning_has_neither(tmp_path):
    model = tiny.base()
    task = tiny.task(model)
    tune(model, task, tiny.examples(4), base_lr=1e-3, folder=tmp_path, console=tiny.quiet())
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert {*line} == {"step", "loss", "lr", "tokens", "seconds", "grad_norm"}
