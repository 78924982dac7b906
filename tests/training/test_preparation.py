"""A method that looks at the base and at data before it is attached: once, without a trace."""

import json
from dataclasses import dataclass

import pytest
import torch

import inlay
from inlay import LoRA, Prefix
from inlay.core.method import METHODS
from inlay.errors import SpecError, TrainingError
from inlay.training import Recipe, fit, prepare, run
from inlay.training.preparation import FILE
from tests import zoo
from tests.tasks import tiny as words
from tests.training import tiny
from tests.training.methods import Fisher

DATA = tiny.examples(12)


def sizes(**options):
    return {"batch_size": 4, "console": tiny.quiet(), **options}


def test_it_is_the_mean_of_squared_gradients():
    model = tiny.base()
    prepared = prepare(model, LoRA() + Fisher(), tiny.task(model), DATA, **sizes(batch_size=12))
    assert {*prepared} == {1}
    task = tiny.task(model)
    batch = task.collate(task.encode_all(DATA))
    loss, count = task.loss(task.outputs(model, batch), batch)
    weight = model.model.layers[1].self_attn.q_proj.weight
    (gradient,) = torch.autograd.grad(loss / count, [weight])
    torch.testing.assert_close(
        prepared[1]["decoder.1.attn.q"], gradient.square().mean(1), rtol=1e-4, atol=1e-9
    )
    handle = inlay.attach(model, LoRA() + Fisher(), prepared=prepared)
    scales = [p.piece.s for p in handle.placed if isinstance(p.method, Fisher)]
    assert all(scale.max() > 0 for scale in scales)


def test_it_leaves_no_trace():
    model = tiny.base()
    _, other = tiny.attached(Prefix(length=2, mlp=None), model=model, name="other")
    model.model.layers[0].train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    learning = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    first = next(other.parameters())
    first.grad = torch.ones_like(first)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with_other = prepare(model, Fisher(), tiny.task(model), DATA, **sizes())
    assert torch.equal(torch.rand(2), expected)
    assert learning == {name: p.requires_grad for name, p in model.named_parameters()}
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(first.grad, torch.ones_like(first))
    assert [*inlay.attached(model)] == ["other"]
    other.detach()
    assert all(p.grad is None for p in model.parameters())
    bare = prepare(model, Fisher(), tiny.task(model), DATA, **sizes())
    for name, tensor in bare[0].items():
        assert torch.equal(tensor, with_other[0][name]), "other inlays do not act meanwhile"


def test_nothing_is_done_for_methods_that_need_nothing():
    model = tiny.base()
    assert prepare(model, LoRA() + Prefix(), None, None) == {}


def test_attach_asks_for_it():
    with pytest.raises(SpecError, match=r"call prepared = inlay.training.prepare\(model"):
        inlay.attach(tiny.base(), LoRA() + Fisher())


def test_only_so_many_batches_are_looked_at():
    model = tiny.base()
    losses = []

    @dataclass(frozen=True, repr=False)
    class Counting(Fisher, listed=False):
        def prepare(self, base, sites, batches):
            losses.append([float(loss()) for loss in batches])
            assert not base.training and not any(p.requires_grad for p in base.parameters())
            return {}

    for batches, count in ((None, 3), (2, 2), (9, 3)):
        prepare(model, Counting(), tiny.task(model), DATA, **sizes(batches=batches))
        assert len(losses[-1]) == count
    assert losses[0] == losses[2]
    assert losses[0][:2] == losses[1]


def test_a_line_says_what_was_done():
    console = tiny.quiet()
    model = tiny.base()
    prepare(model, Fisher(), tiny.task(model), DATA, **sizes(console=console))
    assert console.file.getvalue().startswith("prepared Fisher(): 64 values in 4 tensors, from up")


def test_it_is_kept_in_the_folder_and_taken_from_there(tmp_path):
    model = tiny.base()
    task = tiny.task(model)
    first = prepare(model, Fisher(), task, DATA, **sizes(folder=tmp_path))
    console = tiny.quiet()
    second = prepare(model, Fisher(), task, DATA, **sizes(folder=tmp_path, console=console))
    assert console.file.getvalue() == ""
    assert tiny.same(first[0], second[0])
    for changed in (
        {"data": DATA[:8]},
        {"resume": False},
        {"seed": 1},
        {"spec": Fisher(noise=1.0)},
    ):
        console = tiny.quiet()
        arguments = {"spec": Fisher(), "data": DATA, **changed}
        spec, data = arguments.pop("spec"), arguments.pop("data")
        more = sizes(folder=tmp_path, console=console, **arguments)
        prepare(model, spec, task, data, **more)
        assert console.file.getvalue(), changed
    (tmp_path / FILE).write_bytes(b"half")
    with pytest.raises(TrainingError, match="is damaged .* delete it to prepare anew"):
        prepare(model, Fisher(), task, DATA, **sizes(folder=tmp_path))


def test_it_is_part_of_the_identity_of_a_run(tmp_path):
    def train(data):
        model = tiny.base()
        prepared = prepare(model, Fisher(), tiny.task(model), data, **sizes())
        handle = inlay.attach(model, Fisher(), prepared=prepared)
        arguments = {"console": tiny.quiet(), "folder": tmp_path, "steps": 1, "prepared": prepared}
        return fit(model, handle, tiny.task(model), DATA, **arguments)

    train(DATA)
    train(DATA)
    with pytest.raises(TrainingError, match="prepared was 4 tensors .* and is 4 tensors"):
        train(DATA[:4])


def test_a_recipe_prepares_once(tmp_path, monkeypatch):
    zoo.fresh("llama").save_pretrained(tmp_path / "base")
    words.tokenizer("decoder", bos=True).save_pretrained(tmp_path / "base")
    rows = [{"text": f"the {words.WORDS[n]}", "label": "ab"[n % 2]} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setitem(METHODS, "Fisher", Fisher)
    recipe = Recipe.model_validate(
        {
            "base": str(tmp_path / "base"),
            "method": "Fisher()",
            "task": {"kind": "classify"},  # with a trained head, which is there in the preparation
            "data": {"train": {"source": str(tmp_path / "rows.jsonl")}},
            "training": {"steps": 2},
            "ensemble": 2,
            "out": str(tmp_path / "out"),
        }
    )
    calls = []
    real = Fisher.prepare
    monkeypatch.setattr(
        Fisher,
        "prepare",
        lambda *arguments: calls.append(arguments) or real(*arguments),
        raising=True,
    )
    first = run(recipe, tiny.quiet())
    assert len(calls) == 1
    assert (tmp_path / "out" / FILE).exists()
    second = run(recipe, tiny.quiet())
    assert len(calls) == 1
    assert tiny.numbers(first.training) == tiny.numbers(second.training)
    fresh = run(recipe, tiny.quiet(), resume=False)
    assert len(calls) == 2
    assert tiny.numbers(first.training) == tiny.numbers(fresh.training)
    assert first.recipe == second.recipe
