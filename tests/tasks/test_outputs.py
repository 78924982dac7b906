"""Outputs: how far two runs over a batch are apart, by value, gradient and memory."""

import copy

import pytest
import torch

import inlay
from inlay import LoRA
from inlay.architectures.resolve import resolve
from inlay.laws.case import perturb
from inlay.tasks import (
    BinaryCrossEntropy,
    Choose,
    Classify,
    Extract,
    Generate,
    Regress,
    Tag,
    TrainedHead,
    Verbalizer,
)
from inlay.tasks import loss as loss_module
from inlay.tasks.loss import symmetric_divergence, token_divergence
from inlay.tasks.outputs import BinaryScores, Scores, SpanScores, TokenStates, Values
from tests.tasks.test_batch import ROWS
from tests.tasks.tiny import add_head, bind, examples
from tests.zoo import fresh

N, D = 23, 32
SEVERAL = examples({"text": "a cat", "labels": ["a", "c"]}, {"text": "dull", "labels": []})


def by_hand(a, b):
    """½ Σ KL(p ‖ q) + KL(q ‖ p), class by class."""
    p, q = (scores.double().softmax(-1) for scores in (a, b))
    kept = (p > 0) | (q > 0)
    forward = (p * (p / q).log())[kept].sum()
    return (forward + (q * (q / p).log())[kept].sum()) / 2


def two_runs(dtype=torch.float64):
    return [torch.randn(N, D, dtype=dtype, requires_grad=True) for _ in range(2)]


# ------------------------------------------------------------------------------ by hand


def test_scores():
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    found = Scores(a).divergence(Scores(b))
    torch.testing.assert_close(found.double(), by_hand(a, b), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, Scores(b).divergence(Scores(a)))
    assert Scores(a).divergence(Scores(a + 3)).abs() < 1e-6


def test_a_class_that_cannot_be_does_not_count():
    a, b = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    closed = torch.tensor([[False, False, True, True], [False] * 4])
    masked = [Scores(one.masked_fill(closed, -torch.inf)) for one in (a, b)]
    found = masked[0].divergence(masked[1])
    expected = by_hand(a[:1, :2], b[:1, :2]) + by_hand(a[1:], b[1:])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    found.backward()
    assert a.grad.isfinite().all() and b.grad.isfinite().all()
    assert not a.grad[closed].any()


def test_labels_that_are_decided_one_by_one():
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    both = [torch.stack([torch.zeros_like(one), one], -1) for one in (a, b)]
    found = BinaryScores(a).divergence(BinaryScores(b))
    torch.testing.assert_close(found.double(), by_hand(*both) / 3, rtol=1e-5, atol=1e-6)


def test_starts_and_ends():
    a, b = torch.randn(4, 2, 6), torch.randn(4, 2, 6)
    found = SpanScores(a).divergence(SpanScores(b))
    torch.testing.assert_close(found.double(), by_hand(a, b) / 2, rtol=1e-5, atol=1e-6)


def test_numbers():
    assert Values(torch.tensor([1.0, 2])).divergence(Values(torch.tensor([4.0, 2]))) == 9


# ---------------------------------------------------------------------------- of tokens


@pytest.mark.parametrize("chunk", [1, 7, N, None])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "t5", "bert"])
def test_tokens_in_double_precision(family, chunk):
    base = fresh(family).double().requires_grad_(False)
    chart, (a, b) = resolve(base), two_runs()
    expected = by_hand(chart.logits(base, a), chart.logits(base, b))
    found = token_divergence(chart, base, a, b, chunk=chunk)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected)
    grads = (torch.autograd.grad(3 * one, (a, b)) for one in (found, expected))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("chunk", [7, N])
def test_the_gradient_is_that_of_finite_differences(chunk):
    base = fresh("llama").double().requires_grad_(False)
    a, b = (torch.randn(9, D, dtype=torch.float64, requires_grad=True) for _ in range(2))
    chart = resolve(base)
    assert torch.autograd.gradcheck(
        lambda x, y: token_divergence(chart, base, x, y, chunk=chunk), (a, b)
    )


@pytest.mark.parametrize("chunk", [7, N])
def test_a_head_that_learns(chunk):
    base = fresh("llama").double().requires_grad_(False)
    weight = base.get_output_embeddings().weight.requires_grad_()
    chart, (a, b) = resolve(base), two_runs()
    expected = by_hand(chart.logits(base, a), chart.logits(base, b))
    found = token_divergence(chart, base, a, b, chunk=chunk)
    grads = (torch.autograd.grad(one, (a, b, weight)) for one in (found, expected))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_no_more_logits_at_once_than_one_chunk_of_each_run():
    base = fresh("llama").requires_grad_(False)
    a, b = two_runs(torch.float32)
    rows, kept = [], []
    base.lm_head.register_forward_hook(lambda *args: rows.append(len(args[2])))
    own = {base.lm_head.weight.data_ptr()}

    def keep(tensor):
        if tensor.data_ptr() not in own:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = token_divergence(resolve(base), base, a, b, chunk=6)
    assert sum(kept) <= 2 * N * D, "states are kept for backward, and no logits"
    found.backward()
    assert max(rows) <= 6
    assert len(rows) == 2 * 2 * 4, "two runs, four chunks, once more in backward"


def test_chunks_are_half_those_of_a_loss(monkeypatch):
    base = fresh("llama").requires_grad_(False)
    rows = []
    base.lm_head.register_forward_hook(lambda *args: rows.append(len(args[2])))
    monkeypatch.setattr(loss_module, "positions_at_once", lambda *_: 8)
    with torch.no_grad():
        token_divergence(resolve(base), base, *two_runs(torch.float32))
    assert max(rows) <= 4


def test_nothing_labelled_is_a_zero_with_a_gradient():
    base = fresh("llama")
    a, b = (torch.zeros(0, D, requires_grad=True) for _ in range(2))
    token_divergence(resolve(base), base, a, b).backward()
    assert a.grad.shape == b.grad.shape == (0, D)


# ----------------------------------------------------------------------- of every task

TASKS = [
    Classify(by=TrainedHead(("no", "yes"))),
    Classify(by=Verbalizer({"no": "bad", "yes": "good"}, 0.2), template="{text} was"),
    Generate(auxiliary_weight=0.2),
    Choose(),
    Choose(by="mean"),
    Extract(),
    Tag(labels=("O", "B-a")),
    Regress(),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_two_runs_of_every_task_can_be_compared(task):
    task = copy.deepcopy(task)
    base = fresh("llama")
    bind(task, "llama", base)
    if task.head() is None:
        perturb(inlay.attach(base, LoRA(rank=2)))
    else:
        add_head(base, task)
    batch = task.collate(task.encode_all(ROWS[task.name]))
    first = task.outputs(base, batch)
    assert first.divergence(task.outputs(base, batch)).abs() < 1e-4
    (handle,) = inlay.attached(base).values()
    with torch.no_grad():
        for parameter in handle.parameters():
            parameter.mul_(1.3)
    second = task.outputs(base, batch)
    apart = first.divergence(second)
    assert apart.dim() == 0 and apart > 1e-6
    torch.testing.assert_close(apart, second.divergence(first), rtol=1e-3, atol=1e-5)
    base.zero_grad()
    again = task.outputs(base, batch)
    (task.loss(again, batch)[0] + again.divergence(task.outputs(base, batch))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in handle.parameters())


def test_labels_by_a_sigmoid_have_outputs_of_their_own():
    base = fresh("bert")
    task = Classify(by=TrainedHead(("a", "b", "c")), objective=BinaryCrossEntropy())
    bind(task, "bert", base)
    add_head(base, task)
    batch = task.collate(task.encode_all(SEVERAL))
    assert isinstance(task.outputs(base, batch), BinaryScores)


def test_a_language_model_gives_states_at_its_targets_alone():
    base, task = fresh("llama"), Generate()
    bind(task, "llama", base)
    batch = task.collate(task.encode_all(ROWS["generate"]))
    outputs = task.outputs(base, batch)
    assert isinstance(outputs, TokenStates)
    assert outputs.hidden.shape == (len(batch.targets), D)
    logits = outputs.chart.logits(base, outputs.hidden)
    expected = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
    torch.testing.assert_close(task.loss(outputs, batch)[0], expected, rtol=1e-4, atol=1e-4)
    same = symmetric_divergence(logits, logits)
    assert same == 0
