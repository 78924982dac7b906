"""plan: what a run takes is known before it starts, and nothing is changed by asking."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import inlay
from inlay import LoRA
from inlay.errors import TrainingError
from inlay.training.loop import memory
from inlay.training.loop.memory import live_peak
from inlay.training.loop.step import Stepper
from inlay.training.planning import plan
from tests.training import tiny


def estimate(**options):
    model, handle = tiny.attached()
    task = tiny.Recite()
    task.bind(model, None)
    return model, handle, task, plan(model, handle, task, tiny.examples(60, longest=30), **options)


def test_the_numbers_of_a_run():
    model, handle, _, result = estimate(batch_size=8, epochs=2)
    assert result.parameters == handle.count()
    assert result.file == sum(t.nbytes for t in handle.named_tensors().values())
    assert result.base >= sum(p.nbytes for n, p in model.named_parameters() if "inlays" not in n)
    assert result.optimizer == 8 * handle.count()
    assert (result.rows, result.steps, result.total_steps) == (8, 8, 16)
    assert result.epoch == pytest.approx(8 * result.per_step) and result.per_step > 0
    assert result.fits is True
    _, _, _, limited = estimate(batch_size=8, epochs=2, steps=5, accumulate=2)
    assert (limited.steps, limited.total_steps) == (4, 5)
    _, _, _, timed = estimate(minutes=1)
    assert timed.total_steps is None


def test_the_predicted_peak_is_the_measured_one():
    """Within 15 %: the step that was tried has the largest batch of the run."""
    model, handle, task, result = estimate(batch_size=8)
    with inlay.rows(model, ["default"]):

        def train():
            inlay.fit(
                model, handle, task, tiny.examples(60, longest=30),
                batch_size=8, epochs=1, console=tiny.quiet(),
            )  # fmt: skip

        measured = live_peak(train, torch.device("cpu"))
    # fit keeps the moments too, and the encoded rows and the best pieces, which are small
    assert result.step + result.optimizer == pytest.approx(measured, rel=0.15)


def test_live_tensors_are_counted_as_torchs_allocator_does():
    """Against its own events, for a step whose tensors come and go."""
    model, handle = tiny.attached()
    inputs = {"input_ids": torch.randint(1, 29, (64, 40))}

    def step():
        model(**inputs).logits.square().mean().backward()
        for parameter in handle.parameters():
            parameter.grad = None

    step()
    counted = live_peak(step, torch.device("cpu"))
    assert counted == live_peak(step, torch.device("cpu"))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    current = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            current += event.nbytes()
            highest = max(highest, current)
    assert counted == pytest.approx(highest, rel=0.15)


def test_nothing_is_changed_by_asking():
    model, handle = tiny.attached()
    task = tiny.Recite()
    task.bind(model, None)
    before = {n: t.clone() for n, t in handle.training_state().items()}
    modes = [m.training for m in model.modules()]
    generator = torch.get_rng_state()
    plan(model, handle, task, tiny.examples(20), batch_size=4)
    assert all(torch.equal(before[n], t) for n, t in handle.training_state().items())
    assert all(p.grad is None for p in model.parameters())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)


def test_what_does_not_fit_is_told_with_what_would(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Stepper, "backward", full)
    _, _, _, result = estimate(batch_size=8)
    assert result.peak is None and result.fits is False
    assert result.cures()[0] == "batch_size 4 with accumulate 2, which learns the same"
    model, handle = tiny.attached()
    task = tiny.Recite()
    task.bind(model, None)
    before = {n: t.clone() for n, t in handle.training_state().items()}
    with pytest.raises(TrainingError, match=r"step 1: no memory is left on cpu for a batch of 4"):
        inlay.fit(model, handle, task, tiny.examples(8), batch_size=4, console=tiny.quiet())
    assert all(torch.equal(before[n], t) for n, t in handle.training_state().items())


def test_the_cpus_allocator_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory.is_out_of_memory(caught.value)
    assert not memory.is_out_of_memory(RuntimeError("shapes do not fit"))


def test_a_small_room_asks_for_few_rows():
    _, _, _, result = estimate(batch_size=8)
    small = type(result)(**{**vars(result), "free": result.optimizer + result.step // 4})
    assert small.fits is False
    assert small.cures()[0].startswith("batch_size 1 with accumulate 8")


def test_pieces_of_other_methods():
    model = tiny.base()
    handle = inlay.attach(model, LoRA(rank=4) + inlay.Prefix(length=2))
    task = tiny.Recite()
    task.bind(model, None)
    result = plan(model, handle, task, tiny.examples(12), batch_size=4)
    assert result.parameters > result.file / 4  # the MLP of a prefix is not saved
