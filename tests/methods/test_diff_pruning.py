"""Diff pruning, exactly: gates, the penalty, and the three stages of one training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import inlay
from inlay.core.context import PassContext
from inlay.errors import SpecError
from inlay.files import format as file_format
from inlay.methods.diff_pruning import GatedDelta
from inlay.training import fit
from tests import zoo
from tests.methods import exact
from tests.training import tiny

SPEC = inlay.DiffPruning(keep=0.05, relaxed=0.5)
DATA = tiny.examples(12)


def gated(handle: inlay.Inlay) -> list[GatedDelta]:
    return [placed.piece for placed in handle.placed]


def train(
    spec: inlay.Method = SPEC, task: type[tiny.Recite] = tiny.Recite, **options: Any
) -> tuple[Any, inlay.Inlay, Any]:
    model = tiny.base()
    handle = inlay.attach(model, spec)
    script = {"script": options.pop("script")} if "script" in options else {}
    arguments = {"console": tiny.quiet(), "steps": 8, "batch_size": 6, "lr": 1e-2, **options}
    result = fit(model, handle, tiny.task(model, task, **script), DATA, **arguments)
    return model, handle, result


def piece_with(alpha: float, group: float | None, count: int = 4000) -> GatedDelta:
    """A piece of many weights without a bias, all with the same gates."""
    spec = inlay.DiffPruning(structured=group is not None, at="attn.q")
    piece = gated(inlay.attach(zoo.fresh("llama"), spec))[0]
    piece.alpha.data.fill_(alpha)
    if group is not None:
        piece.group.data.fill_(group)
    return piece


@pytest.mark.parametrize("group", [None, 0.4])
@pytest.mark.parametrize("alpha", [-1.0, 0.3, 2.0])
def test_the_expected_number_of_open_gates_is_what_draws_show(
    alpha: float, group: float | None
) -> None:
    """E[‖z‖₀] = Σ P(z > 0); with a gate for the whole matrix both must be open."""
    piece = piece_with(alpha, group)
    opened = torch.stack([(piece._gates(PassContext(seed=s)) > 0).float() for s in range(1500)])
    expected = torch.sigmoid(torch.tensor(alpha))
    expected = expected if group is None else expected * torch.sigmoid(torch.tensor(group))
    assert float(piece.open_gates().detach()[0]) == pytest.approx(float(expected), abs=1e-6)
    assert float(opened.mean()) == pytest.approx(float(expected), abs=0.04)


def test_gates_by_hand() -> None:
    """s = σ(ln u − ln(1 − u) + α), stretched to −1.5 … 1.5 and cut to 0 … 1."""
    piece = piece_with(0.7, None)
    seed = PassContext(seed=4).generator("gates", "single", piece.name).initial_seed()
    u = torch.rand(piece.count, generator=torch.Generator().manual_seed(seed))
    s = torch.sigmoid(u.log() - (1 - u).log() + 0.7)
    expected = torch.minimum(torch.ones(()), torch.maximum(torch.zeros(()), 3 * s - 1.5))
    torch.testing.assert_close(piece._gates(PassContext(seed=4)), expected)
    settled = 3 * torch.sigmoid(torch.tensor(0.7)) - 1.5  # u = ½
    torch.testing.assert_close(piece._gates(None), settled.expand(piece.count))


def test_penalty_by_hand() -> None:
    handle = inlay.attach(zoo.fresh("bert"), inlay.DiffPruning(penalty_weight=0.5))
    torch.manual_seed(0)
    expected = 0.0
    for piece in gated(handle):
        for parameter in (piece.alpha, piece.group):
            parameter.data.normal_()
        parts = piece.alpha.detach().split(piece.sizes)
        for part, group in zip(parts, piece.group.detach(), strict=True):
            expected += float(part.sigmoid().sum() * group.sigmoid())
    assert float(handle.penalty().detach()) == pytest.approx(0.5 * expected, rel=1e-5)
    plain = inlay.attach(zoo.fresh("bert"), inlay.DiffPruning(structured=False, penalty_weight=1.0))
    total = sum(piece.count for piece in gated(plain))
    sigmoid = float(torch.sigmoid(torch.tensor(5.0)))
    assert float(plain.penalty().detach()) == pytest.approx(total * sigmoid, rel=1e-5)
    without = inlay.attach(zoo.fresh("bert"), inlay.DiffPruning(penalty_weight=0.0))
    assert without.penalty() is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_starts_as_the_base(family: str) -> None:
    exact.check_start(family, SPEC)


def test_gates_have_a_learning_rate_of_their_own() -> None:
    handle = inlay.attach(zoo.fresh("llama"), SPEC)
    changes, gates = handle.parameter_groups()
    assert (changes.learning_rate, changes.weight_decay) == (1e-4, None)
    assert (gates.learning_rate, gates.weight_decay) == (0.1, 0.0)
    assert [group.learning_rate for group in handle.parameter_groups(1e-3)] == [1e-3, 0.1]
    count = sum(piece.count for piece in gated(handle))
    assert sum(p.numel() for p in changes.parameters) == count
    groups = sum(len(piece.sizes) for piece in gated(handle))
    assert sum(p.numel() for p in gates.parameters) == count + groups


def test_after_the_relaxed_stage_the_largest_changes_are_kept_as_they_are() -> None:
    _, handle, _ = train(inlay.DiffPruning(keep=0.05, relaxed=1.0), steps=4)
    pieces = gated(handle)
    assert all(piece.pruned for piece in pieces)
    model = tiny.base()
    handle = inlay.attach(model, SPEC)
    torch.manual_seed(2)
    for parameter in handle.parameters():
        parameter.data.normal_()
    before = {p.site.name: p.piece.change(None).detach().clone() for p in handle.placed}
    handle.after_step(0.49)
    assert not handle.settled and not any(piece.pruned for piece in gated(handle))
    handle.after_step(0.5)
    assert handle.settled
    every = torch.cat([*before.values()]).abs()
    threshold = every.sort(descending=True).values[int(0.05 * len(every)) - 1]
    for placed in handle.placed:
        change = before[placed.site.name]
        expected = torch.where(change.abs() >= threshold, change, 0.0)
        for training in (False, True):
            placed.piece.train(training)
            after = placed.piece.change(PassContext(seed=1))
            torch.testing.assert_close(after, expected, rtol=0, atol=0)
    assert float(handle.penalty().detach()) == 0


def test_one_training_has_all_stages_and_keeps_so_many(tmp_path: Path) -> None:
    model, handle, _ = train()
    total = sum(piece.count for piece in gated(handle))
    kept = int(0.05 * total)
    assert sum(int((piece.change(None) != 0).sum()) for piece in gated(handle)) == kept
    _, at_half, _ = train(inlay.DiffPruning(keep=0.05, relaxed=1.0), steps=4)  # no stage after it
    assert sum(int((piece.change(None) != 0).sum()) for piece in gated(at_half)) == kept
    path = handle.save(tmp_path / "diff.safetensors")
    tensors = file_format.read(path).tensors
    assert sum(t.numel() for n, t in tensors.items() if n.endswith("values")) == kept
    other = tiny.base()
    before = {name: p.detach().clone() for name, p in other.named_parameters()}
    loaded = inlay.load(other, path)
    assert isinstance(loaded.spec, inlay.Sparse)
    inputs = {"input_ids": torch.tensor([[3, 4, 5, 6]])}
    model.eval()
    torch.testing.assert_close(other(**inputs).logits, model(**inputs).logits)
    loaded.merge()
    assert sum(int((p != before[n]).sum()) for n, p in other.named_parameters()) == kept
    assert all(torch.equal(model.get_parameter(n), p) for n, p in before.items())


def test_the_last_stage_trains_what_was_kept() -> None:
    _, short, _ = train(steps=8, script=(), task=tiny.Scripted)
    kept = [piece.kept.clone() for piece in gated(short)]
    assert all(bool(piece.pruned) for piece in gated(short))
    before = [piece.w.detach().clone() for piece in gated(short)]
    optimiser = torch.optim.AdamW(short.parameters(), lr=1e-2)
    task = tiny.task(short.model)
    batch = task.collate(task.encode_all(DATA))
    task.loss(task.outputs(short.model.train(), batch), batch)[0].backward()
    for piece, mask in zip(gated(short), kept, strict=True):
        assert not piece.w.grad[~mask].any()
    optimiser.step()
    moved = [
        (p.change(None) != w * k).sum() for p, w, k in zip(gated(short), before, kept, strict=True)
    ]
    assert sum(map(int, moved)) > 0.9 * sum(int(k.sum()) for k in kept)


def test_no_state_from_before_pruning_is_the_best() -> None:
    """The best score is that of the first evaluation, when nothing is pruned yet."""
    _, handle, result = train(
        task=tiny.Scripted, script=(9.0, 1.0, 0.5, 2.0), dev=DATA[:2], eval_every=2, steps=8
    )
    assert [e.score for e in result.evaluations] == [9.0, 1.0, 0.5, 2.0]
    assert result.best.score == 2.0
    assert all(bool(piece.pruned) for piece in gated(handle))


@pytest.mark.parametrize("after", [2, 6])
def test_a_training_in_parts_is_the_same_as_in_one_piece(after: int, tmp_path: Path) -> None:
    """Interrupted in the relaxed stage, and in the last one."""
    _, whole, _ = train(folder=tmp_path / "a", checkpoint_every=1)

    class Stopping(tiny.Recite):
        name = "stopping-here"
        calls = 0

        def losses(self, outputs, batch):
            self.calls += 1
            if self.calls == after:
                raise KeyboardInterrupt
            return super().losses(outputs, batch)

    del inlay.tasks.TASKS["stopping-here"]
    with pytest.raises(KeyboardInterrupt):
        train(task=Stopping, folder=tmp_path / "b", checkpoint_every=1)
    _, resumed, _ = train(folder=tmp_path / "b", checkpoint_every=1, task=named(Stopping, 99))
    assert tiny.same(tiny.state(resumed), tiny.state(whole))


def named(task: Any, calls: int) -> Any:
    """The same task, as far as a run can tell, that is not stopped."""
    task.calls = calls
    return task


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_merge(family: str) -> None:
    exact.check_merge(family, inlay.DiffPruning(gate=0.7))


def test_refusals() -> None:
    with pytest.raises(SpecError, match="relaxed is a part of the training, not 1.5"):
        inlay.DiffPruning(relaxed=1.5)
    with pytest.raises(SpecError, match="penalty_weight must be 0 or more"):
        inlay.DiffPruning(penalty_weight=-1.0)
    with pytest.raises(SpecError, match="keep is a share of at most 1"):
        inlay.DiffPruning(keep=2.0)
