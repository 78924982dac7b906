"""The loop: what learns, what does not, when it ends, and that numbers are numbers."""

import io
import json
import math
import random
import time
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from rich.console import Console

import inlay
from inlay import LoRA, Prefix
from inlay.errors import TrainingError
from inlay.training import Options, evaluate, fit, predict
from inlay.training.loop.progress import ProgressDisplay
from tests.training import tiny


def train(*, data=None, model=None, handle=None, kind=tiny.Recite, fields=None, **options):
    if handle is None:
        model, handle = tiny.attached()
    task = tiny.task(model, kind, **(fields or {}))
    rows = tiny.examples(24) if data is None else data
    options.setdefault("console", tiny.quiet())
    return fit(model, handle, task, rows, **options), handle


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_only_the_pieces_learn_and_the_loss_falls(tmp_path):
    model, handle = tiny.attached(LoRA(rank=4, at=("attn.q", "attn.v", "mlp.down")))
    before = {name: p.clone() for name, p in model.named_parameters()}
    result, _ = train(
        model=model, handle=handle, data=tiny.examples(64), epochs=6, lr=2e-2, folder=tmp_path
    )
    losses = [line["loss"] for line in log(tmp_path)]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (not name.startswith("inlays.")), name
        assert parameter.grad is None
    assert result.stopped == "epochs"
    assert result.epochs == 6
    assert result.steps == 24 == len(losses)


def test_one_large_batch_and_many_small_ones_are_the_same():
    ends = []
    for batch_size, accumulate in ((8, 1), (2, 4), (3, 3), (1, 8)):
        model, handle = tiny.attached(LoRA(rank=2), model=tiny.base().double())
        model.inlays.double()
        size = {"batch_size": batch_size, "accumulate": accumulate, "clip": 0.5}
        result, _ = train(model=model, handle=handle, data=tiny.examples(8), epochs=5, **size)
        assert result.steps == 5
        ends.append((tiny.state(handle), result.loss))
    for pieces, loss in ends[1:]:
        assert loss == pytest.approx(ends[0][1], rel=1e-9)
        for name, tensor in pieces.items():
            torch.testing.assert_close(tensor, ends[0][0][name], rtol=1e-8, atol=1e-10)


def test_the_same_seed_gives_the_same_bits():
    size = {"epochs": 2, "batch_size": 4}
    first, a = train(seed=3, **size)
    torch.rand(5), random.random()
    second, b = train(seed=3, **size)
    other, c = train(seed=4, **size)
    assert tiny.same(tiny.state(a), tiny.state(b))
    assert tiny.numbers(first) == tiny.numbers(second)
    assert not tiny.same(tiny.state(a), tiny.state(c))
    assert first.loss != other.loss


def test_generators_and_modes_are_left_alone():
    model, handle = tiny.attached()
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    handle.eval()
    model.model.layers[0].train()
    modes = {name: module.training for name, module in model.named_modules()}
    train(model=model, handle=handle, steps=1)
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]
    assert modes == {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("dropout", [True, False])
def test_dropout_of_the_base_is_a_choice_and_that_of_pieces_is_not(dropout):
    modes = []

    class Watching(tiny.Recite):
        name = "watching"

        def outputs(self, model, batch):
            modes.append((model.model.training, model.inlays.sets["default"].training))
            return super().outputs(model, batch)

    del inlay.tasks.TASKS["watching"]
    train(kind=Watching, steps=1, dropout=dropout)
    assert modes == [(dropout, True)]


def test_rows_that_are_no_examples_are_refused():
    with pytest.raises(
        TrainingError, match=r"as inlay.data.load\(rows\) returns them, not {'text'"
    ):
        train(data=[{"text": "a"}])


def test_other_inlays_hold_still():
    model, handle = tiny.attached()
    _, other = tiny.attached(Prefix(length=2, mlp=None), model=model, name="other")
    before = tiny.state(other)
    train(model=model, handle=handle, steps=3)
    assert tiny.same(before, tiny.state(other))
    assert all(p.requires_grad and p.grad is None for p in other.parameters())
    fresh, single = tiny.attached()
    train(model=fresh, handle=single, steps=3)
    assert not tiny.same(tiny.state(single), tiny.state(handle)), "the other one acts all the same"


@pytest.mark.processor
def test_a_base_in_bf16_keeps_its_pieces_in_fp32():
    model, handle = tiny.attached(model=tiny.base().bfloat16())
    result, _ = train(model=model, handle=handle, epochs=2)
    assert {p.dtype for p in handle.parameters()} == {torch.float32}
    assert model.dtype == torch.bfloat16
    assert math.isfinite(result.loss)


# --------------------------------------------------------------------------------- its end


def test_whichever_end_comes_first():
    assert train(steps=3, epochs=9)[0].stopped == "steps"
    result = train(steps=99, epochs=1.5, batch_size=4)[0]
    assert (result.stopped, result.steps, result.epochs) == ("epochs", 9, 1.5)
    assert train(batch_size=4)[0].epochs == 3, "the default"


def test_a_time_budget_is_kept_and_the_rate_falls_to_nothing(tmp_path, monkeypatch):
    """By a clock that goes on by a tenth of a second whenever it is read."""
    now = count()
    monkeypatch.setattr("inlay.training.loop.trainer.clock", lambda: next(now) / 10)
    result, _ = train(minutes=15 / 60, folder=tmp_path, lr=1.0, warmup=0.0)
    assert result.stopped == "minutes"
    assert 15 <= result.seconds < 15.5
    rates = [line["lr"] for line in log(tmp_path)]
    assert rates == sorted(rates, reverse=True)
    assert len(rates) > 50
    assert rates[0] > 0.9 > 0.1 > rates[-1]


def test_the_log_has_a_line_a_step_and_one_an_evaluation(tmp_path):
    data, dev = tiny.examples(12), tiny.examples(5, seed=1)
    result, handle = train(
        data=data, dev=dev, batch_size=4, epochs=2, eval_every=2, folder=tmp_path
    )
    lines = log(tmp_path)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert {*steps[0]} == {"step", "loss", "lr", "tokens", "seconds", "grad_norm"}
    tokens = sum(len(str(example.fields["ids"]).split()) for example in data)
    assert sum(line["tokens"] for line in steps[:3]) == tokens
    assert result.tokens == 2 * tokens
    evaluations = [line for line in lines if "scores" in line]
    assert [line["step"] for line in evaluations] == [2, 4, 6]
    assert [line["scores"]["likelihood"] for line in evaluations] == [
        e.score for e in result.evaluations
    ]
    assert evaluate(handle.model, tiny.task(handle.model), dev) == result.best.scores


def test_evaluation_comes_after_every_epoch_and_at_the_end():
    dev = tiny.examples(5, seed=1)
    result, _ = train(dev=dev, batch_size=8, epochs=2.5)
    assert [evaluation.step for evaluation in result.evaluations] == [3, 6, 8]


def test_the_best_pieces_come_back():
    dev = tiny.examples(3, seed=1)
    script = {"kind": tiny.Scripted, "fields": {"script": (1.0, 5.0, 2.0, 3.0)}}
    size = {"dev": dev, "eval_every": 1, "schedule": "constant", "warmup": 0.0}
    result, best = train(**script, **size, steps=4)
    assert (result.best.step, result.best.score) == (2, 5.0)
    _, two = train(**size, steps=2, keep_best=False)
    assert tiny.same(tiny.state(best), tiny.state(two)), "bit for bit those of step 2"
    last, four = train(**script, **size, steps=4, keep_best=False)
    assert last.best.step == 4
    assert not tiny.same(tiny.state(best), tiny.state(four))


def test_patience_ends_a_run_that_gets_no_better():
    script = {"kind": tiny.Scripted, "fields": {"script": (1.0, 2.0, 2.0, 1.5, 9.0)}}
    result, _ = train(**script, dev=tiny.examples(3), epochs=50, eval_every=1, patience=2)
    assert result.stopped == "patience"
    assert result.steps == 4
    assert result.best.step == 2


# ------------------------------------------------------------------------------ what is refused


def test_a_loss_that_is_not_finite_stops_before_the_step():
    model, handle = tiny.attached()
    states = []

    class Bursting(tiny.Recite):
        name = "bursting"

        def loss(self, outputs, batch):
            loss, count = super().loss(outputs, batch)
            states.append(tiny.state(handle))
            return loss * (math.inf if len(states) == 6 else 1), count

    del inlay.tasks.TASKS["bursting"]
    options = {"batch_size": 2, "accumulate": 2, "lr": 0.25, "schedule": "constant", "warmup": 0.0}
    with pytest.raises(TrainingError, match=r"step 3: the loss is not finite .*0.25") as caught:
        train(model=model, handle=handle, kind=Bursting, data=tiny.examples(40), **options)
    assert tiny.same(states[-1], tiny.state(handle))
    assert str(caught.value).count("rows.jsonl:") == 2, "the rows of the batch that did it"
    assert all(p.grad is None for p in handle.parameters())
    assert not tiny.same(states[0], states[-1])


def test_a_gradient_that_is_not_finite_stops_too():
    model, handle = tiny.attached()

    class Steep(tiny.Recite):
        name = "steep"

        def loss(self, outputs, batch):
            loss, count = super().loss(outputs, batch)
            return (loss - loss.detach()).sqrt() + loss.detach(), count

    del inlay.tasks.TASKS["steep"]
    before = tiny.state(handle)
    with pytest.raises(TrainingError, match=r"step 1: the gradient .* and 8 more"):
        train(model=model, handle=handle, kind=Steep, batch_size=8, accumulate=2)
    assert tiny.same(before, tiny.state(handle))


def test_rows_without_anything_that_counts_are_named():
    lonely = inlay.data.Example({"ids": "4"}, "rows.jsonl:1")
    with pytest.raises(TrainingError, match=r"step 1: no token or label counts .*rows.jsonl:1"):
        train(data=[lonely])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 3}, "epoch: there is no such field; did you mean 'epochs'?"),
        ({"lr": -1}, "lr: input should be greater than 0, not -1"),
        ({"lr": math.nan}, "lr: input should be"),
        ({"batch_size": 2, "tokens": 5}, "give batch_size or tokens, not both"),
        ({"patience": 2}, "patience needs examples to evaluate on; give dev"),
        ({"eval_every": 2}, "eval_every needs examples to evaluate on; give dev"),
        ({"checkpoint_every": 2}, "checkpoint_every needs a folder"),
        ({"data": []}, "there are no examples"),
        ({"dev": []}, "there are no examples"),
        ({"trackers": ["wandbb"]}, "no tracker is called 'wandbb'; did you mean 'wandb'?"),
        ({"trackers": ["aim"]}, "the tracker 'aim' is not installed"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(TrainingError) as caught:
        train(**options)
    assert str(caught.value).startswith(message)


def test_an_inlay_that_cannot_learn_here_is_refused():
    model, handle = tiny.attached()
    handle.enabled = False
    with pytest.raises(TrainingError, match="no piece of the inlay acts"):
        train(model=model, handle=handle)
    for parameter in handle.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing in the inlay 'default' learns"):
        train(model=model, handle=handle)
    with pytest.raises(TrainingError, match="not attached to this model"):
        train(model=tiny.base(), handle=handle)
    handle.detach()
    with pytest.raises(TrainingError, match="not attached to this model"):
        train(model=model, handle=handle)


@pytest.mark.parametrize(
    ("kind", "precision", "message"),
    [
        (DistributedType.FSDP, "no", "whole model in each process, not FSDP"),
        (DistributedType.NO, "fp16", "no mixed precision 'fp16'; use bf16"),
    ],
)
def test_what_accelerate_could_but_fit_cannot_is_refused(monkeypatch, kind, precision, message):
    fake = SimpleNamespace(distributed_type=kind, mixed_precision=precision)
    monkeypatch.setattr("inlay.training.loop.launch.Accelerator", lambda **_: fake)
    with pytest.raises(TrainingError, match=message):
        train()


# --------------------------------------------------------------------------- beside the numbers


def test_predictions_come_in_the_order_of_the_examples():
    model, _ = tiny.attached()
    task, data = tiny.task(model), tiny.examples(13)
    singly = [predict(model, task, [example])[0] for example in data]
    for size in ({"batch_size": 4}, {"batch_size": None, "tokens": 20}):
        batched = predict(model, task, data, **size)
        assert [float(x) for x in batched] == pytest.approx([float(x) for x in singly], abs=1e-5)


def test_trackers_get_every_step(monkeypatch):
    from accelerate import tracking

    events = []

    class Recorder(tracking.GeneralTracker):
        name = "wandb"
        requires_logging_directory = False
        tracker = None
        main_process_only = True

        def __init__(self, run_name, **kwargs):
            super().__init__()
            events.append(run_name)

        def store_init_configuration(self, values):
            events.append(values)

        def log(self, values, step=None, **kwargs):
            events.append((step, values))

        def finish(self):
            events.append("finished")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    kinds = [tracking.LoggerType.WANDB]
    for module in ("inlay.training.loop.launch", "accelerate.tracking"):
        monkeypatch.setattr(f"{module}.get_available_trackers", lambda: kinds)
    train(trackers=["wandb"], steps=2, dev=tiny.examples(3))
    assert events[0] == "inlay"
    assert events[1]["method"] == "LoRA(rank=2, dropout=0.1)"
    assert events[2][0] == 1
    assert {*events[2][1]} == {"loss", "lr", "tokens", "grad_norm"}
    assert {*events[-2][1]} == {"dev/likelihood"}
    assert events[-1] == "finished"


def test_a_pipe_gets_plain_lines_and_a_terminal_a_bar(monkeypatch):
    for name in ("FIRST_LINE_AFTER", "LINE_EVERY"):
        monkeypatch.setattr(f"inlay.training.loop.progress.{name}", 0.0)
    pipe = io.StringIO()
    train(console=Console(file=pipe), steps=4, dev=tiny.examples(3))
    lines = pipe.getvalue().splitlines()
    assert "\x1b" not in pipe.getvalue()
    assert lines[0].startswith("step 1  25%  loss ")
    assert lines[0].endswith(" left")
    assert "tokens/s" in lines[0]
    assert lines[-1].startswith("step 4: likelihood -")
    terminal = io.StringIO()
    train(console=Console(file=terminal, force_terminal=True), steps=4)
    assert "\x1b" in terminal.getvalue()


def test_an_evaluation_says_how_far_it_is(monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr("inlay.training.loop.progress.FIRST_LINE_AFTER", math.inf)
    train(console=Console(file=pipe), steps=2, batch_size=4, dev=tiny.examples(40))
    assert "evaluating" not in pipe.getvalue()
    monkeypatch.setattr("inlay.training.loop.progress.FIRST_LINE_AFTER", 0.0)
    monkeypatch.setattr("inlay.training.loop.progress.LINE_EVERY", 0.0)
    train(console=Console(file=pipe), steps=2, batch_size=4, dev=tiny.examples(40))
    lines = [line for line in pipe.getvalue().splitlines() if line.startswith("evaluating dev  ")]
    assert len(lines) == 9  # of ten batches; the last one ends it
    assert lines[0].startswith("evaluating dev  10%  4 of 40 rows  ") and lines[0].endswith(" left")


def test_plain_lines_are_sparse(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pipe = io.StringIO()
    with (
        ProgressDisplay(Console(file=pipe)) as display,
        display.counting("reading", 200) as advance,
    ):
        for _ in range(100):
            now[0] += 1
            advance(1)
    assert [line.split("  ")[1] for line in pipe.getvalue().splitlines()] == [
        *("1%", "16%", "31%", "46%")
    ]


def test_a_terminal_sees_a_bar_for_whatever_takes_long():
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=100)
    with ProgressDisplay(console) as display:
        with display.counting("evaluating [dev]", 10) as advance:
            advance(4)
            time.sleep(0.6)
        with display.counting("loading it"):
            time.sleep(0.6)
    assert "evaluating [dev]" in terminal.getvalue()
    assert "4 of 10 rows" in terminal.getvalue()
    assert "loading it" in terminal.getvalue()


def test_options_are_data():
    options = Options(tokens=512, betas=(0.8, 0.99), lr="1e-4")
    assert options.lr == 1e-4
    assert options.rows is None
    assert Options(**options.model_dump()) == options
