"""Intrinsic prompt tuning: a code that learns, and the decoder that many prompts leave behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import inlay
from inlay.errors import FileError, SpecError, TrainingError
from inlay.laws.case import perturb
from inlay.laws.compare import relative_error
from inlay.methods.ipt import Decoder
from inlay.tasks import Classify, Verbalizer
from inlay.training import Subtask, fit, fit_decoder
from tests import zoo
from tests.tasks.tiny import examples, tokenizer

ROWS = examples(
    *(
        {"text": f"the {word}", "label": label}
        for label, words in {"a": ("cat", "dog"), "b": ("film", "plot")}.items()
        for word in words
    )
)


def lessons(model, count: int, length: int = 3) -> list[Subtask]:
    made = []
    for number in range(count):
        task = Classify(template="{text} was", by=Verbalizer({"a": "good", "b": "bad"}))
        task.bind(model, tokenizer("decoder"))
        torch.manual_seed(number)
        handle = inlay.attach(model, inlay.Prompt(length=length), name=f"t{number}")
        perturb(handle)
        made.append(Subtask(task, ROWS, (handle,)))
    return made


def test_only_the_code_learns_and_the_prompt_is_what_is_served(tmp_path: Path) -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.IPT(length=3, code=4, inner=5))
    assert handle.count() == 4
    perturb(handle)
    ids = torch.arange(8, 15)[None]
    logits = model(ids).logits
    logits.square().sum().backward()
    (code,) = handle.parameters()
    assert (code.grad != 0).all()
    with torch.no_grad():
        path = handle.save(tmp_path / "p.safetensors")
        handle.detach()
        served = inlay.load(model, path)
        assert served.spec == inlay.IPT(length=3, code=None, inner=5)
        assert relative_error(model(ids).logits, logits) < 1e-5


def test_it_is_the_formula() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.IPT(length=2, code=4, inner=5))
    perturb(handle)
    _, _, piece = next(iter(zoo.pieces(handle)))
    z = piece.code
    hidden = torch.tanh(piece.inner_weight @ z + piece.inner_bias)
    prompt = (piece.outer_weight @ hidden + piece.outer_bias).reshape(2, 32)
    torch.testing.assert_close(piece(), prompt)


def test_a_decoder_learns_to_make_the_prompts_of_many_tasks(tmp_path: Path) -> None:
    model = zoo.fresh("llama")
    tasks = lessons(model, 3)
    prompts = [next(iter(one.inlays[0].parameters())).detach().clone() for one in tasks]
    base = {name: p.clone() for name, p in model.named_parameters()}
    told = {"code": 4, "inner": 16, "lr": 1e-2, "batch_size": 2}
    state = torch.get_rng_state()
    files = [
        fit_decoder(model, tasks, tmp_path / f"{n}.safetensors", steps=n, **told) for n in (1, 300)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert "inlay-intrinsic" not in inlay.attached(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, base[name]), name
    far_off = []
    for file in files:
        spec = inlay.IPT(length=3, code=4, inner=16, decoder=str(file))
        decoder = Decoder(4, 16, 3 * 32)
        decoder.read(file)
        best = []
        for prompt in prompts:  # the nearest point of the subspace
            code = torch.zeros(4, requires_grad=True)
            optimizer = torch.optim.Adam([code], lr=0.05)
            for _ in range(300):
                loss = (decoder(code) - prompt.flatten()).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            best.append(loss.item())
        far_off.append(sum(best))
        handle = inlay.attach(model, spec, name="new")
        assert handle.count() == 4
        handle.detach()
    assert far_off[1] < 0.5 * far_off[0]


def test_a_new_task_trains_its_code_alone(tmp_path: Path) -> None:
    model = zoo.fresh("llama")
    tasks = lessons(model, 2)
    file = fit_decoder(model, tasks, tmp_path / "d.safetensors", code=4, inner=16, steps=20)
    for lesson in tasks:
        lesson.inlays[0].detach()
    handle = inlay.attach(model, inlay.IPT(length=3, code=4, inner=16, decoder=str(file)))
    frozen = {name: t.clone() for name, t in handle.training_state().items() if "code" not in name}
    result = fit(model, handle, tasks[0].task, ROWS, steps=40, batch_size=4)
    assert result.loss < 0.69
    for name, tensor in handle.training_state().items():
        if name in frozen:
            assert torch.equal(tensor, frozen[name]), name


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = zoo.fresh("llama")
    wrong = tmp_path / "wrong.safetensors"
    save_file({"inner.weight": torch.zeros(2, 2)}, wrong)
    for path, said in ((wrong, "another length"), (tmp_path / "gone.safetensors", "cannot read")):
        with pytest.raises(FileError, match=said):
            inlay.attach(model, inlay.IPT(length=2, code=2, inner=2, decoder=str(path)))
    assert not inlay.attached(model)
    with pytest.raises(SpecError, match="code"):
        inlay.IPT(code=None, decoder="x")
    tasks = lessons(model, 1)
    more = lessons_of_another_length(model)
    with pytest.raises(TrainingError, match="equally long"):
        fit_decoder(model, [*tasks, *more], tmp_path / "d.safetensors", steps=1)
    assert not (tmp_path / "d.safetensors").exists()
    assert load_file(wrong)


def lessons_of_another_length(model) -> list[Subtask]:
    task = Classify(template="{text} was", by=Verbalizer({"a": "good", "b": "bad"}))
    task.bind(model, tokenizer("decoder"))
    return [Subtask(task, ROWS, (inlay.attach(model, inlay.Prompt(length=2), name="longer"),))]
