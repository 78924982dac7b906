"""The choose task: by the likelihood of each choice, and by a trained head."""

import pytest
import torch
from torch.nn import functional as F

import inlay
from inlay.errors import DataError, TaskError
from inlay.laws.case import perturb
from inlay.methods.head import Head
from inlay.methods.lora import LoRA
from inlay.runtime.trained_heads import head_inputs, head_of
from inlay.tasks import Choose, from_spec
from inlay.training import fit, predict, vote
from tests.tasks.tiny import WORDS, examples, loss_of, tokenizer
from tests.training.tiny import quiet
from tests.zoo import fresh, model

KINDS = {"llama": "decoder", "bert": "encoder", "t5": "encoder-decoder"}
WRITERS = ("llama", "gpt2", "t5")
ROWS = examples(
    {"text": "the cat sat on", "choices": ["a mat", "all new film", "red"], "label": 0},
    {"text": "very dull", "choices": ["it was a bad plot", "good"], "label": "good"},
    {"text": "one two", "choices": ["nine", "three", "not ten", "old"], "label": "1"},
)


def words(family):
    return tokenizer(KINDS.get(family, "decoder"), bos=True)


def bound_task(family, base=None, **fields):
    task = Choose(**fields)
    task.bind(model(family) if base is None else base, words(family))
    return task


def refused(call, *needles, error=DataError):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for needle in needles:
        assert needle in message


def own_scores(family, base, row, by):
    """The scores of a row's choices as the model's own forward gives them, one at a time."""
    read = words(family)
    found = []
    for choice in row.fields["choices"]:
        front = read(row.fields["text"]).input_ids
        target = read(choice, add_special_tokens=False).input_ids
        if family == "t5":
            shifted = torch.tensor([[0, *target[:-1]]])
            logits = base(input_ids=torch.tensor([front]), decoder_input_ids=shifted).logits[0]
        else:
            logits = base(input_ids=torch.tensor([front + target])).logits[0, len(front) - 1 : -1]
        chances = logits.log_softmax(-1)
        each = torch.stack([chances[place, token] for place, token in enumerate(target)])
        found.append(each.mean() if by == "mean" else each.sum())
    return torch.stack(found)


# --------------------------------------------------------------------------- by likelihood


@pytest.mark.parametrize("by", ["sum", "mean"])
@pytest.mark.parametrize("family", WRITERS)
@torch.no_grad()
def test_a_padded_batch_scores_choices_as_the_model_does(family, by):
    base, task = model(family), bound_task(family, by=by)
    batch = task.collate(task.encode_all(ROWS))
    logits = task.outputs(base, batch).scores
    losses, best = [], []
    for place, (row, gold) in enumerate(zip(ROWS, (0, 1, 1), strict=True)):
        own = own_scores(family, base, row, by)
        torch.testing.assert_close(logits[place, : len(own)], own, rtol=1e-4, atol=1e-4)
        assert (logits[place, len(own) :] == -torch.inf).all()
        losses.append(F.cross_entropy(own, torch.tensor(gold)))
        best.append(int(own.argmax()))
    loss, count = loss_of(task, base, batch)
    torch.testing.assert_close(loss, sum(losses), rtol=1e-4, atol=1e-4)
    assert count == len(ROWS)
    assert task.predict(base, batch) == best


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_the_side_the_tokenizer_pads_on_changes_nothing(side):
    read = words("llama")
    read.padding_side = side
    task, base = Choose(by="mean"), model("llama")
    task.bind(base, read)
    plain = bound_task("llama", by="mean")
    theirs, ours = (
        one.outputs(base, one.collate(one.encode_all(ROWS))).scores for one in (plain, task)
    )
    assert torch.equal(theirs, ours)


@torch.no_grad()
def test_likelihoods_in_chunks_are_those_of_all_at_once(monkeypatch):
    from inlay.tasks import loss

    base, task = model("llama"), bound_task("llama", by="sum")
    batch = task.collate(task.encode_all(ROWS))
    whole = task.outputs(base, batch).scores
    monkeypatch.setattr(loss, "positions_at_once", lambda *_: 3)
    torch.testing.assert_close(task.outputs(base, batch).scores, whole)


def test_gradients_in_chunks_are_those_of_all_at_once(monkeypatch):
    from inlay.tasks import loss

    base = fresh("llama")
    piece = inlay.attach(base, LoRA(rank=2))
    perturb(piece)
    task = bound_task("llama", base, by="mean")
    batch = task.collate(task.encode_all(ROWS))

    def gradient():
        base.zero_grad()
        loss_of(task, base, batch)[0].backward()
        return [p.grad.clone() for p in piece.parameters()]

    whole = gradient()
    assert any(grad.abs().sum() > 0 for grad in whole)
    monkeypatch.setattr(loss, "positions_at_once", lambda *_: 3)
    torch.testing.assert_close(gradient(), whole)


def test_an_encoder_gives_no_likelihood():
    refused(lambda: bound_task("bert", by="sum"), "is an encoder", "by='head'", error=TaskError)


# ---------------------------------------------------------------------------- by a head


def headed(family, **fields):
    base = fresh(family)
    piece = inlay.attach(base, LoRA(rank=2) + Head(labels=("score",)))
    perturb(piece)
    return base, bound_task(family, base, **fields)


@pytest.mark.parametrize("family", KINDS)
@torch.no_grad()
def test_a_head_scores_premise_and_choice_read_together(family):
    base, task = headed(family)
    read, head = words(family), head_of(base, "default")
    logits = task.outputs(base, task.collate(task.encode_all(ROWS))).scores
    for place, row in enumerate(ROWS):
        for number, choice in enumerate(row.fields["choices"]):
            # the tiny tokenizer reads a line break, which joins a decoder's two texts, as a space
            text = row.fields["text"]
            encoding = (
                read(f"{text}\n{choice}", return_tensors="pt")
                if family == "llama"
                else read(text, choice, return_tensors="pt", return_token_type_ids=family == "bert")
            )
            states, mask = head_inputs(base, task.bound.chart, **encoding)
            own = head(states, mask)[0, 0]
            torch.testing.assert_close(logits[place, number], own, rtol=1e-4, atol=1e-4)


def test_a_head_of_other_labels_is_refused():
    base = fresh("llama")
    inlay.attach(base, Head(labels=("a", "b")))
    task = bound_task("llama", base)
    batch = task.collate(task.encode_all(ROWS))
    refused(
        lambda: task.outputs(base, batch).scores, "add Head(labels=('score',))", error=TaskError
    )
    assert bound_task("llama", by="sum").head() is None


# --------------------------------------------------------------------------- in both ways

WAYS = [("llama", "sum"), ("llama", "mean"), ("t5", "mean"), *((kind, "head") for kind in KINDS)]


def any_way(family, by, **fields):
    if by == "head":
        return headed(family, **fields)
    base = fresh(family)
    perturb(inlay.attach(base, LoRA(rank=2)))
    return base, bound_task(family, base, by=by, **fields)


@pytest.mark.parametrize(("family", "by"), WAYS)
@torch.no_grad()
def test_choices_in_another_order_are_chosen_alike(family, by):
    base, task = any_way(family, by)
    order = [2, 0, 3, 1]
    row = {**ROWS[2].fields}
    turned = {**row, "choices": [row["choices"][place] for place in order]}
    del row["label"], turned["label"]
    plain, other = (
        task.outputs(base, task.collate(task.encode_all(examples(one)))).scores
        for one in (row, turned)
    )
    torch.testing.assert_close(other[0], plain[0, order], rtol=1e-4, atol=1e-5)
    best = task.predict(base, task.collate(task.encode_all(examples(row))))[0]
    there = task.predict(base, task.collate(task.encode_all(examples(turned))))[0]
    assert order[there] == best


@pytest.mark.parametrize(("family", "by"), WAYS)
@torch.no_grad()
def test_rows_of_a_batch_with_different_inlays(family, by):
    base, task = any_way(family, by)
    spec = LoRA(rank=2) + Head(labels=("score",)) if by == "head" else LoRA(rank=2)
    torch.manual_seed(5)
    second = inlay.attach(base, spec, name="second")
    for parameter in second.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rows = task.encode_all(ROWS)
    names = ["default", "second", "default"]
    with inlay.rows(base, names):
        mixed = task.outputs(base, task.collate(rows)).scores
    for place, (row, name) in enumerate(zip(rows, names, strict=True)):
        with inlay.rows(base, [name]):
            alone = task.outputs(base, task.collate([row])).scores
        own = mixed[place, : alone.shape[1]]
        torch.testing.assert_close(own, alone[0], rtol=1e-4, atol=1e-4)
    with inlay.rows(base, ["second"]):
        other = task.outputs(base, task.collate(rows[:1])).scores
    assert not torch.allclose(mixed[0, : other.shape[1]], other[0])


def test_members_vote_on_choices():
    base, task = any_way("llama", "mean")
    second = inlay.attach(base, LoRA(rank=2), name="second")
    handles = [inlay.attached(base)["default"], second]
    voted = vote(base, handles, task, ROWS, batch_size=2)
    for place, handle in enumerate(handles):
        with inlay.rows(base, [handle.name]):
            assert voted.members[place] == task.score(predict(base, task, ROWS), ROWS)
    assert len(voted.predictions) == len(ROWS)


@pytest.mark.parametrize(("family", "by"), [("llama", "mean"), ("t5", "sum"), ("bert", "head")])
def test_it_learns_which_choice_follows(family, by):
    """Causes and effects over two fields, as in COPA: the right choice names a colour."""
    drawn = torch.Generator().manual_seed(0)
    rows = []
    for number in range(48):
        other = WORDS[int(torch.randint(len(WORDS), (), generator=drawn))]
        pair = ["red film", f"{other} plot"]
        gold = number % 2
        rows.append(
            {
                "premise": f"the {WORDS[number % 30]} sat",
                "question": "cat",
                "choice1": pair[gold],
                "choice2": pair[1 - gold],
                "label": gold,
            }
        )
    base = fresh(family)
    spec = LoRA(rank=4) + Head(labels=("score",)) if by == "head" else LoRA(rank=4)
    piece = inlay.attach(base, spec)
    task = bound_task(
        *(family, base),
        by=by,
        template="{premise} was the {question}",
        choices=["choice1", "choice2"],
    )
    data = examples(*rows)

    result = fit(base, piece, task, data[:36], lr=1e-2, steps=40, batch_size=12, console=quiet())
    assert result.loss < 0.3
    said = predict(base, task, data[36:])
    assert task.score(said, data[36:])["accuracy"] > 0.9


@pytest.mark.parametrize(("family", "by"), WAYS)
def test_virtual_tokens_stand_in_the_premise(family, by):
    base = fresh(family)
    spec = inlay.PTuning(length=3)
    inlay.attach(base, spec + Head(labels=("score",)) if by == "head" else spec)
    task = Choose(by=by)
    task.place_virtual_tokens(3, 1, ROWS)
    assert (task.template, task.virtual_tokens) == ("{p} {text} {p*2}", 3)
    task.bind(base, words(family))
    assert task.encode(ROWS[0], 0).input_ids.count(task.bound.first_virtual_id) == 3
    assert torch.isfinite(loss_of(task, base, task.collate(task.encode_all(ROWS)))[0])


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("by", ["head", "mean"])
def test_rows_that_do_not_work(by):
    task = bound_task("llama", by=by)

    def one(**fields):
        row = {"text": "a cat", "choices": ["good", "bad"], "label": 0} | fields
        return lambda: task.encode(examples({k: v for k, v in row.items() if v is not None})[0], 0)

    assert one()().labels == [0]
    assert one(label=1.0)().labels == [1]
    assert one(label=None)().labels is None
    refused(one(choices=None), "rows#1: there is no field 'choices'")
    refused(one(choices="good"), "rows#1: field 'choices' is a text, not a list")
    refused(one(choices=[]), "rows#1: it has 0 choices; a row needs at least 2")
    refused(one(choices=["good"]), "rows#1: it has 1 choices; a row needs at least 2")
    refused(one(choices=["good", " "]), "rows#1: choice 1 is empty")
    refused(one(choices=["good", ["bad"]]), "rows#1: choice 1 is a list, not a text")
    for label in (2, -1, 0.5, True, "2", "fine", "-1"):
        refused(one(label=label), f"rows#1: label {label!r} is none of its choices", "0 to 1")
    refused(one(text=" "), "rows#1: its premise is empty")
    refused(one(text=None), "rows#1: there is no field 'text'")


def test_a_label_that_is_a_text_and_a_number_is_the_text():
    task = bound_task("llama")
    row = examples({"text": "a", "choices": ["1", "0"], "label": "1"})[0]
    assert task.encode(row, 0).labels == [0]


def test_fields_that_make_no_sense():
    refused(lambda: Choose(by="tokens"), "by='tokens' is impossible", error=TaskError)
    for names in (["a"], ["a", "a"], []):
        refused(lambda n=names: Choose(choices=n), "at least two different fields", error=TaskError)
    refused(lambda: Choose(template="so"), "has no {column}", error=TaskError)
    refused(lambda: Choose(template="{text} {choice}"), "leave {choice} out", error=TaskError)
    named = Choose(template="{premise} What was the {question}?", choices=["choice1", "choice2"])
    assert named.required_fields == ("premise", "question", "choice1", "choice2", "label")
    assert Choose().required_fields == ("text", "choices", "label")
    assert from_spec(named.describe()) == named


def test_what_is_too_long_is_refused_or_cut_from_the_premise():
    row = examples({"text": "one two three four five", "choices": ["a cat", "red"], "label": 0})[0]
    refused(
        lambda: bound_task("llama", by="sum", max_length=6).encode(row, 0), "rows#1: its input is 6"
    )
    refused(
        lambda: bound_task("llama", by="sum", max_length=2).encode(row, 0), "longest choice alone"
    )
    cut = bound_task("llama", by="sum", max_length=6, truncate=True).encode(row, 0)
    premise = words("llama")("one two three").input_ids
    assert [text.ids for text in cut.texts] == [premise] * 2, "both choices behind one premise"
    assert cut.cost == 2 * 6


def test_rows_without_labels():
    task = bound_task("llama", by="mean")
    bare = [{k: v for k, v in row.fields.items() if k != "label"} for row in ROWS]
    rows = task.encode_all(examples(*bare))
    refused(lambda: loss_of(task, model("llama"), task.collate(rows)), "to learn from")
    assert len(task.predict(model("llama"), task.collate(rows))) == 3


def test_score():
    assert Choose().score([0, 0, 1], ROWS) == {"accuracy": pytest.approx(2 / 3)}
