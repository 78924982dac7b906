"""`token_loss` is plain cross entropy, in chunks that never hold all the logits."""

import pytest
import torch
from torch.nn import functional as F

import inlay
from inlay.architectures.resolve import resolve
from inlay.methods.lora import LoRA
from inlay.tasks import loss as loss_module
from inlay.tasks.loss import positions_at_once, token_loss
from tests.zoo import fresh, model

N, D, V = 23, 32, 99
PLAIN = ["llama", "gemma2", "gpt2", "t5", "bart"]


def states(dtype=torch.float32):
    hidden = torch.randn(N, D, dtype=dtype, requires_grad=True)
    return hidden, torch.randint(0, V, (N,))


def reference(base, hidden, targets):
    return F.cross_entropy(resolve(base).logits(base, hidden).float(), targets, reduction="sum")


def gradient(loss, *tensors):
    return torch.autograd.grad(3 * loss, tensors)


@pytest.mark.parametrize("chunk", [1, 7, N, None])
@pytest.mark.parametrize("family", [*PLAIN, "bert", "gemma3"])
def test_value_and_gradient_of_a_frozen_head(family, chunk):
    base = fresh(family).requires_grad_(False)
    hidden, targets = states()
    expected = reference(base, hidden, targets)
    found = token_loss(resolve(base), base, hidden, targets, chunk=chunk)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradient(found, hidden), gradient(expected, hidden), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("chunk", [7, N])
@pytest.mark.parametrize("family", PLAIN)
def test_a_head_that_learns(family, chunk):
    base = fresh(family).requires_grad_(False)
    weight = base.get_output_embeddings().weight.requires_grad_()
    hidden, targets = states()
    expected = reference(base, hidden, targets)
    found = token_loss(resolve(base), base, hidden, targets, chunk=chunk)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradient(found, hidden, weight), gradient(expected, hidden, weight), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("chunk", [7, N])
def test_weights_say_how_much_each_token_counts(chunk, learns):
    base = fresh("llama").requires_grad_(False)
    weight = base.get_output_embeddings().weight.requires_grad_(learns)
    hidden, targets = states()
    weights = torch.rand(N)
    each = F.cross_entropy(resolve(base).logits(base, hidden).float(), targets, reduction="none")
    expected = (each * weights).sum()
    found = token_loss(resolve(base), base, hidden, targets, weights=weights, chunk=chunk)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    asked = (hidden, weight) if learns else (hidden,)
    torch.testing.assert_close(
        gradient(found, *asked), gradient(expected, *asked), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("chunk", [7, N])
def test_a_piece_on_the_head_learns(chunk):
    base = fresh("llama")
    piece = inlay.attach(base, LoRA(rank=2, at="head"))
    parameters = list(piece.parameters())
    for parameter in parameters:
        torch.nn.init.normal_(parameter)
    hidden, targets = states()
    base(torch.tensor([[1]]))  # a forward pass says which inlay acts
    expected = reference(base, hidden, targets)
    found = token_loss(resolve(base), base, hidden, targets, chunk=chunk)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradient(found, hidden, *parameters),
        gradient(expected, hidden, *parameters),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("learns", [False, True])
def test_no_more_logits_at_once_than_allowed_and_no_more_calls_than_needed(learns):
    base = fresh("llama").requires_grad_(False)
    base.lm_head.requires_grad_(learns)
    hidden, targets = states()
    seen = []
    base.lm_head.register_forward_hook(lambda *args: seen.append(len(args[2])))
    token_loss(resolve(base), base, hidden, targets, chunk=10)
    assert max(seen) <= 10
    assert seen[-3:] == [8, 8, 7]
    assert len(seen) == (4 if learns else 3)  # the first chunk shows that the head learns


def test_the_chunk_is_chosen_by_memory(monkeypatch):
    base = model("llama")
    hidden, targets = states()
    seen = []
    handle = base.lm_head.register_forward_hook(lambda *args: seen.append(args[2].numel() * 4))
    try:
        with torch.no_grad():
            token_loss(resolve(base), base, hidden, targets)
            monkeypatch.setattr(loss_module, "CHUNK_ROWS", 1)
            monkeypatch.setattr(loss_module, "CHUNK_BYTES_ON_CPU", 5 * 4 * V)
            token_loss(resolve(base), base, hidden, targets)
    finally:
        handle.remove()
    assert seen[0] == N * V * 4
    assert len(seen) == 1 + 5
    assert max(seen[1:]) <= 5 * 4 * V


@pytest.mark.parametrize(
    ("vocabulary", "device", "rows"),
    [(49_152, "cpu", 128), (49_152, "cuda", 341), (262_144, "cpu", 64), (262_144, "cuda", 64)],
)
def test_large_vocabularies_get_enough_rows_to_be_worth_reading_the_head(vocabulary, device, rows):
    assert positions_at_once(vocabulary, torch.device(device)) == rows


def test_a_head_that_is_not_plain_is_applied_once():
    base = model("bert")
    hidden, targets = states()
    seen = []
    handle = base.cls.register_forward_hook(lambda *args: seen.append(len(args[2])))
    try:
        with torch.no_grad():
            chart = resolve(base)
            logits = chart.logits(base, hidden)
            loss = token_loss(chart, base, hidden, targets, chunk=2)
    finally:
        handle.remove()
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets, reduction="sum"))
    assert chart.linear_head is False


@pytest.mark.parametrize("learns", [False, True])
def test_no_logits_are_kept_for_backward(learns):
    base = fresh("llama").requires_grad_(False)
    base.lm_head.requires_grad_(learns)
    hidden, targets = states()
    kept = []
    own = {base.lm_head.weight.data_ptr()}

    def keep(tensor):
        if tensor.data_ptr() not in own:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = token_loss(resolve(base), base, hidden, targets, chunk=6)
    assert loss.requires_grad
    if learns:
        assert sum(kept) < 6 * V + 2 * N * D  # at most the chunk in which it showed
    else:
        assert kept == [N * D]


@pytest.mark.processor
def test_bf16_is_as_near_as_its_roundings_let_it():
    """In bf16 are rounded (by u = 2^-8 of themselves) the logits z, p - y, and the gradient.

    z, the sum over p and the gradient are sums of D or V terms in fp32 (w = 2^-24 each, whatever
    the kernel). With z off by e at most, log p and p are off by 2e and by 2e of themselves.
    """
    base = fresh("llama").requires_grad_(False).bfloat16()
    hidden, targets = states(torch.bfloat16)
    found = token_loss(resolve(base), base, hidden, targets, chunk=5)
    assert found.dtype == torch.float32
    found.backward()
    assert hidden.grad.dtype == torch.bfloat16
    exact = hidden.detach().double().requires_grad_()
    head = base.lm_head.weight.double()
    logits = exact @ head.T
    expected = F.cross_entropy(logits, targets, reduction="sum")
    (slope,) = torch.autograd.grad(expected, exact)
    with torch.no_grad():
        u, w = (torch.finfo(kind).eps / 2 for kind in (torch.bfloat16, torch.float32))
        sizes = exact.abs() @ head.abs().T
        off = 2 * (u * logits.abs() + 2 * D * w * sizes).amax(1, keepdim=True)
        assert abs(found - expected) <= (off + 2 * (V + N) * w * sizes.amax(1, keepdim=True)).sum()
        p = logits.softmax(1)
        sure = (p - F.one_hot(targets, V)).abs()
        of_p = off.expm1() * p
        each = 1.01 * (2 * u + 2 * (V + D) * w)  # 1.01: what is rounded was rounded before
        allowed = (of_p + each * (sure + of_p)) @ head.abs()
        assert bool(((hidden.grad - slope).abs() <= allowed).all())


def test_without_gradients_nothing_is_built():
    base = model("llama")
    hidden, targets = states()
    with torch.no_grad():
        assert not token_loss(resolve(base), base, hidden, targets).requires_grad
    frozen = fresh("llama").requires_grad_(False)
    assert not token_loss(resolve(frozen), frozen, hidden.detach(), targets).requires_grad


def test_nothing_labelled_is_a_zero_with_a_gradient():
    base = model("llama")
    hidden = torch.zeros(0, D, requires_grad=True)
    loss = token_loss(resolve(base), base, hidden, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss == 0
    assert hidden.grad.shape == (0, D)
