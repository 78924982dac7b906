"""The regress task: a number for a text or a pair, by a trained head."""

import pytest
import torch

import inlay
from inlay.errors import DataError, TaskError
from inlay.laws.case import perturb
from inlay.methods.head import Head
from inlay.methods.lora import LoRA
from inlay.tasks import Regress, from_spec
from inlay.tasks.outputs import Values
from inlay.training import fit, predict, vote
from tests.tasks.tiny import WORDS, examples, loss_of, tokenizer
from tests.training.tiny import quiet
from tests.zoo import fresh

KINDS = {"llama": "decoder", "bert": "encoder", "t5": "encoder-decoder"}
ROWS = examples(
    {"text": "the cat sat on a mat", "text_pair": "a cat", "label": 2.5},
    {"text": "dull", "text_pair": "very bright film", "label": "-1"},
    {"text": "one", "label": 0},
)


def bound_task(family, **fields):
    base = fresh(family)
    perturb(inlay.attach(base, LoRA(rank=2) + Head(labels=("value",))))
    task = Regress(**fields)
    task.bind(base, tokenizer(KINDS[family], bos=True))
    return base, task


def refused(call, *needles, error=DataError):
    with pytest.raises(error) as caught:
        call()
    for needle in needles:
        assert needle in str(caught.value)


@pytest.mark.parametrize("family", KINDS)
@torch.no_grad()
def test_a_padded_batch_says_what_its_rows_say_alone(family):
    base, task = bound_task(family)
    rows = task.encode_all(ROWS)
    alone = torch.cat([task.outputs(base, task.collate([row])).values for row in rows])
    batch = task.collate(rows)
    torch.testing.assert_close(task.outputs(base, batch).values, alone, rtol=1e-4, atol=1e-5)
    assert alone.unique().numel() == 3
    loss, count = loss_of(task, base, batch)
    by_hand = (alone[0] - 2.5) ** 2 + (alone[1] + 1) ** 2 + alone[2] ** 2
    torch.testing.assert_close(loss, by_hand, rtol=1e-4, atol=1e-4)
    assert count == 3
    assert task.predict(base, batch) == pytest.approx(alone.tolist(), rel=1e-4, abs=1e-5)


def test_it_learns_how_often_a_word_is_there():
    drawn = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(48):
        often = int(torch.randint(5, (), generator=drawn))
        picks = torch.randint(20, (4 - often,), generator=drawn).tolist()
        text = " ".join(["red"] * often + [WORDS[one] for one in picks])
        rows.append({"text": text, "label": often / 2})
    data = examples(*rows)
    base = fresh("bert")
    piece = inlay.attach(base, LoRA(rank=4) + Head(labels=("value",)))
    task = Regress()
    task.bind(base, tokenizer("encoder"))
    fit(base, piece, task, data[:36], lr=1e-2, steps=60, batch_size=12, console=quiet())
    scores = task.score(predict(base, task, data[36:]), data[36:])
    assert scores["pearson"] > 0.8
    assert scores["r2"] > 0.5
    assert set(scores) == {"pearson", "spearman", "r2"}


def test_members_meet_in_the_mean():
    base, task = bound_task("llama")
    spec = LoRA(rank=2) + Head(labels=("value",))
    handles = [inlay.attached(base)["default"], inlay.attach(base, spec, name="second")]
    voted = vote(base, handles, task, ROWS, batch_size=2)
    apart = []
    for handle in handles:
        with inlay.rows(base, [handle.name]):
            apart.append(predict(base, task, ROWS))
    means = [(a + b) / 2 for a, b in zip(*apart, strict=True)]
    assert voted.predictions == pytest.approx(means, rel=1e-4, abs=1e-5)


def test_labels_must_be_numbers():
    _, task = bound_task("llama")
    for label in ("high", True, "nan", "inf", ""):
        odd = examples({"text": "a", "label": label})[0]
        refused(lambda odd=odd: task.encode(odd, 0), f"rows#1: label {label!r} is not a number")
    bare = task.encode(examples({"text": "a"})[0], 0)
    assert bare.labels is None
    outputs = Values(torch.zeros(1))
    refused(lambda: task.loss(outputs, task.collate([bare])), "to learn from")


def test_what_it_needs():
    base = fresh("llama")
    inlay.attach(base, Head(labels=("a", "b")))
    task = Regress()
    task.bind(base, tokenizer("decoder"))
    batch = task.collate(task.encode_all(ROWS))
    refused(lambda: task.predict(base, batch), "add Head(labels=('value',))", error=TaskError)
    refused(lambda: Regress(template="so"), "has no {column}", error=TaskError)
    named = Regress(template="{a} {b}", metric="spearman")
    assert named.required_fields == ("a", "b", "label")
    assert from_spec(named.describe()) == named
    named.place_virtual_tokens(3, 1, ROWS)
    assert (named.template, named.virtual_tokens) == ("{p} {a} {b} {p*2}", 3)
