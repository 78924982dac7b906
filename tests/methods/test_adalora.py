"""AdaLoRA, exactly: importance, budget, pruning, and the file with the small ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import inlay
from inlay.errors import SpecError
from inlay.files import format as file_format
from inlay.laws.compare import model_output
from inlay.methods.adalora import SingularValues
from tests import zoo
from tests.methods import exact

SPEC = inlay.AdaLoRA(rank=3, target=1, warmup=0.2, final=0.3, interval=0.1)


def triplets(handle: inlay.Inlay) -> list[SingularValues]:
    return [p.piece for p in handle.placed]


def train(spec: inlay.Method, steps: int = 20, stop: int | None = None) -> tuple:
    """Steps of AdamW with penalty and schedule; how many values are kept after each."""
    torch.manual_seed(3)
    model = zoo.fresh("llama")
    handle = inlay.attach(model, spec)
    optimiser = torch.optim.AdamW(handle.parameters(), lr=1e-2)
    kept = []
    for step in range(1, (stop or steps) + 1):
        optimiser.zero_grad()
        loss = model_output(model, exact.batch("llama")).logsumexp(-1).mean()
        (loss + handle.penalty()).backward()
        optimiser.step()
        handle.after_step(step / steps)
        kept.append(sum(int((p.e != 0).sum()) for p in triplets(handle)))
    return model, handle, kept


def test_formula() -> None:
    _, handle = exact.moved("llama", inlay.AdaLoRA(rank=4, target=2, alpha=8.0))
    piece = triplets(handle)[0]
    exact.expect(handle.placed[0], 8 / (4 + 1e-5) * (piece.p * piece.e) @ piece.q)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_starts_as_the_base(family: str) -> None:
    exact.check_start(family, SPEC)


def test_the_budget_falls_as_a_cubic_between_its_ends() -> None:
    spec = inlay.AdaLoRA(rank=12, target=8, warmup=0.1, final=0.3)
    budgets = [spec.budget(step / 100, 10) for step in range(101)]
    assert budgets[0] == budgets[10] == 120 and budgets[70] == budgets[100] == 80
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[40] == 80 + 40 // 8  # half-way: an eighth of the difference


def test_what_is_kept_at_the_end_is_the_budget_and_stays() -> None:
    _, handle, kept = train(SPEC)
    count = len(handle.placed)
    assert kept[3] == 3 * count  # warm-up: all
    assert kept[13:] == [count] * 7  # the last 30 %: the target, on average one a matrix
    assert handle.settled
    ranks = {int((p.e != 0).sum()) for p in triplets(handle)}
    assert len(ranks) > 1  # some matrices earned more than others


def test_importance_by_hand() -> None:
    piece = triplets(inlay.attach(zoo.fresh("llama"), SPEC))[0]
    for parameter in piece.parameters():
        parameter.data.normal_()
    expected = torch.zeros(3)
    state = dict.fromkeys("qep", (0.0, 0.0))
    for _ in range(3):
        scores = {}
        for name, parameter in (("q", piece.q), ("e", piece.e), ("p", piece.p)):
            parameter.grad = torch.randn_like(parameter)
            now = (parameter * parameter.grad).abs().detach()
            mean = 0.85 * state[name][0] + 0.15 * now
            spread = 0.85 * state[name][1] + 0.15 * (now - mean).abs()
            state[name] = (mean, spread)
            scores[name] = mean * spread
        with torch.no_grad():
            piece.note_importance()
        expected = scores["e"] + scores["p"].mean(0) + scores["q"].mean(1)
    torch.testing.assert_close(piece.importance(), expected)


def test_penalty_by_hand() -> None:
    handle = inlay.attach(zoo.fresh("llama"), SPEC)
    expected = 0.0
    for piece in triplets(handle):
        for gram in (piece.p.T @ piece.p, piece.q @ piece.q.T):
            expected += float((gram.detach() - torch.eye(3)).pow(2).sum())
    assert float(handle.penalty().detach()) == pytest.approx(0.1 * expected, rel=1e-5)


def test_the_file_holds_what_was_kept_and_computes_the_same(tmp_path: Path) -> None:
    model, handle, _ = train(SPEC)
    path = handle.save(tmp_path / "adalora.safetensors")
    tensors = file_format.read(path).tensors
    values = [t for name, t in tensors.items() if name.endswith("/e")]
    assert sum(len(t) for t in values) == len(handle.placed)
    assert len({len(t) for t in values}) > 1
    other = zoo.fresh("llama")
    loaded = inlay.load(other, path)
    inputs = exact.batch("llama")
    expected = exact.run(model, inputs)
    torch.testing.assert_close(exact.run(other, inputs), expected, rtol=1e-5, atol=1e-6)
    loaded.merge()
    torch.testing.assert_close(exact.run(other, inputs), expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_holds_importance_and_what_is_kept() -> None:
    _, half, _ = train(SPEC, stop=9)
    assert not half.settled  # no state of it may be the best one
    other = inlay.attach(zoo.fresh("llama"), SPEC)
    other.load_training_state(half.training_state())
    for ours, theirs in zip(triplets(other), triplets(half), strict=True):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 2, "target": 3}, "target=3 is more than the rank=2"),
        ({"warmup": 0.5, "final": 0.5}, "must leave some of the training between"),
        ({"orthogonal": -1.0}, "orthogonal must be 0 or more"),
    ],
)
def test_refusals(fields: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        inlay.AdaLoRA(**fields)
