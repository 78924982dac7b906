"""Checkpoints: a run in parts is the same as one in one piece, and no other run's is taken."""

import json
import signal

import pytest
import torch
from rich.console import Console

import inlay
from inlay import LoRA, Prefix
from inlay.errors import TrainingError
from inlay.training import fit
from inlay.training.loop import checkpoint, rng
from tests.training import tiny

OPTIONS = {"batch_size": 3, "accumulate": 2, "epochs": 3, "eval_every": 3, "checkpoint_every": 1}


class Stopping(tiny.Recite):
    """Ctrl-C, so and so many calls of `loss` or `predict` in."""

    name = "stopping"
    presses: tuple[int, ...] = ()
    calls = 0

    def losses(self, outputs, batch):
        self.calls += 1
        if self.calls in self.presses:
            signal.raise_signal(signal.SIGINT)
        return super().losses(outputs, batch)


del inlay.tasks.TASKS["stopping"]


def train(folder=None, *, spec=None, data=20, dev=4, presses=(), model=None, **options):
    model, handle = tiny.attached(spec, model=model)
    task = tiny.task(model, Stopping)
    task.presses = presses
    options = {**OPTIONS, **options}
    options.setdefault("console", tiny.quiet())
    if folder is None:
        del options["checkpoint_every"]
    rows, dev_rows = tiny.examples(data), tiny.examples(dev, seed=1)
    return fit(model, handle, task, rows, dev=dev_rows, folder=folder, **options), handle


def log(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("spec", [None, LoRA(dropout=0.2) + Prefix(length=2, mlp=6)])
@pytest.mark.parametrize("press", [1, 5, 8, 11, 20])
def test_ctrl_c_and_then_on_is_the_same_as_in_one_piece(tmp_path, press, spec):
    whole, unbroken = train(tmp_path / "a", spec=spec)
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step .* start the same run again"):
        train(tmp_path / "b", spec=spec, presses=(press,))
    result, resumed = train(tmp_path / "b", spec=spec)
    assert tiny.numbers(result) == tiny.numbers(whole)
    assert tiny.same(tiny.state(resumed), tiny.state(unbroken))
    assert log(tmp_path / "a") == log(tmp_path / "b")


def test_checkpoints_change_no_number(tmp_path):
    with_one, a = train(tmp_path)
    without, b = train()
    assert tiny.numbers(with_one) == tiny.numbers(without)
    assert tiny.same(tiny.state(a), tiny.state(b))


def test_a_finished_run_is_not_run_again(tmp_path):
    first, trained = train(tmp_path)
    before = log(tmp_path)
    repeated, loaded = train(tmp_path, presses=(1,))  # one more step would be interrupted
    assert tiny.numbers(repeated) == tiny.numbers(first)
    assert tiny.same(tiny.state(trained), tiny.state(loaded))
    assert log(tmp_path) == before
    fresh, _ = train(tmp_path, resume=False, seed=5)
    assert fresh.loss != first.loss
    assert log(tmp_path) != before


def test_a_second_ctrl_c_is_obeyed_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        train(tmp_path, presses=(5, 6), checkpoint_every=100)
    assert not caught.value.args, "it came from the middle of a step"
    assert not (tmp_path / checkpoint.NAME).exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_without_a_folder_says_that_nothing_was_kept():
    console = Console(record=True, file=tiny.quiet().file, width=200)
    with pytest.raises(KeyboardInterrupt, match="step 1: nothing was kept on disk"):
        train(presses=(2,), console=console)
    assert "stopped after step 1: nothing was kept on disk" in console.export_text()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.5}, "lr was [0.001] and is [0.5]"),
        ({"accumulate": 3}, "accumulate was 2 and is 3"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"spec": LoRA(rank=3)}, '"rank": 3'),
        ({"data": 19}, "data was 20 rows"),
        ({"dev": 5}, "dev was 4 rows"),
        ({"model": lambda: tiny.base().bfloat16()}, "base was LlamaForCausalLM torch.float32"),
        ({"model": lambda: moved(tiny.base())}, "base was LlamaForCausalLM torch.float32"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, changed, message):
    train(tmp_path, steps=2)
    changes = {k: v() if callable(v) else v for k, v in changed.items()}
    with pytest.raises(TrainingError, match="is of another run") as caught:
        train(tmp_path, steps=2, **changes)
    assert message in str(caught.value)


def moved(model):
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight += 0.5
    return model


def test_options_that_change_no_number_may_change(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, presses=(8,))
    assert train(tmp_path, checkpoint_every=7)[0].stopped == "epochs"


def test_damaged_checkpoints_are_refused(tmp_path):
    train(tmp_path, steps=2)
    path = tmp_path / checkpoint.NAME
    good = path.read_bytes()
    for bad in (b"", good[:100], good[:-5], b"\xff" * 4000):
        path.write_bytes(bad)
        with pytest.raises(TrainingError, match=r"is damaged .* delete it"):
            train(tmp_path, steps=2)
    assert good.count(b'format\\": 2') == 1
    path.write_bytes(good.replace(b'format\\": 2', b'format\\": 1'))
    with pytest.raises(TrainingError, match="another version"):
        train(tmp_path, steps=2)


def test_a_log_that_was_cut_is_refused_and_one_that_went_on_is_cut(tmp_path):
    train(tmp_path, steps=2)
    path = tmp_path / "log.jsonl"
    before = path.read_bytes()
    path.write_bytes(before + b'{"step": 3, "loss"')
    train(tmp_path, steps=2)
    assert path.read_bytes() == before
    path.write_bytes(before[:-1])
    with pytest.raises(TrainingError, match="shorter than"):
        train(tmp_path, steps=2)


def test_half_written_files_are_swept_away(tmp_path):
    partial = tmp_path / f".{checkpoint.NAME}.x1y2"
    partial.write_bytes(b"half")
    train(tmp_path, steps=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint.NAME, "log.jsonl"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write"):
        train(tmp_path / "file")


def test_every_generator_goes_on_where_it_was():
    import random

    import numpy

    def draw():
        return torch.rand(2).tolist(), random.gauss(0, 1), numpy.random.standard_normal()

    rng.seed(3)
    random.gauss(0, 1), numpy.random.standard_normal()  # half of a pair is kept back
    state = json.loads(json.dumps(rng.capture()))
    drawn = draw()
    assert drawn != draw()
    rng.restore(state)
    assert drawn == draw()
