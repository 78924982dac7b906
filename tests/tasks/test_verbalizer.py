"""Words at a blank: where it is, several words a label, and scores to learn from."""

import math

import pytest
import torch

import inlay
from inlay.data.loading import load
from inlay.errors import DataError
from inlay.tasks import Classify, Distillation, TrainedHead, Verbalizer, from_spec
from tests.tasks.tiny import (
    KINDS,
    add_head,
    bind,
    examples,
    loss_of,
    refused,
    sentinels,
    words,
)
from tests.zoo import fresh, model

WORDS = {"no": [" bad", " dull", " red"], "yes": " good"}
PATTERNS = {"llama": "{text} it was {mask}", "bert": "it was {mask} and {text}"}
ROWS = examples({"text": "the cat sat on a mat"}, {"text": "dull"}, {"text": "very bright film"})


def ids_of(read, text):
    return read(text, return_tensors="pt").input_ids


def means(read, logits):
    """The mean logit of each label's words."""
    ids = [
        [ids_of_word for word in ([one] if isinstance(one, str) else one)
         for ids_of_word in read(word, add_special_tokens=False).input_ids]
        for one in WORDS.values()
    ]  # fmt: skip
    return torch.stack([logits[own].mean() for own in ids])


@pytest.mark.parametrize("family", PATTERNS)
@torch.no_grad()
def test_scores_are_the_models_logits_at_the_blank(family):
    base, read = model(family), words(family)
    task = bind(Classify(template=PATTERNS[family], by=Verbalizer(WORDS)), family)
    scores = task.outputs(base, task.collate(task.encode_all(ROWS))).scores
    for row, own in zip(ROWS, scores, strict=True):
        text = PATTERNS[family].replace("{text}", row.fields["text"])
        if family == "bert":
            ids = ids_of(read, text.replace("{mask}", "<mask>"))
            logits = base(input_ids=ids).logits[0, ids[0].tolist().index(read.mask_token_id)]
        else:
            logits = base(input_ids=ids_of(read, text.removesuffix(" {mask}"))).logits[0, -1]
        torch.testing.assert_close(own, means(read, logits), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_encoder_decoder_writes_the_word_behind_its_sentinel():
    base, read = model("t5"), sentinels()
    task = Classify(template="{text} it was {mask} .", by=Verbalizer(WORDS))
    task.bind(base, read)
    scores = task.outputs(base, task.collate(task.encode_all(ROWS))).scores
    sentinel = read.get_vocab()["<extra_id_0>"]
    for row, own in zip(ROWS, scores, strict=True):
        ids = ids_of(read, f"{row.fields['text']} it was <extra_id_0> .")
        assert ids[0].tolist().count(sentinel) == 1
        logits = base(input_ids=ids, decoder_input_ids=torch.tensor([[0, sentinel]])).logits[0, 1]
        torch.testing.assert_close(own, means(read, logits), rtol=1e-4, atol=1e-4)
    bad = examples({"text": "a <extra_id_0> of its own"})
    refused(lambda: task.encode_all(bad), "rows#1", "the mask token", error=DataError)


def test_only_the_text_is_shortened():
    task = Classify(template=PATTERNS["bert"], by=Verbalizer(WORDS), truncate=True, max_length=8)
    bind(task, "bert")
    (row,) = task.encode_all(examples({"text": "one two three four five six seven"}))
    said = words("bert").convert_ids_to_tokens(row.input_ids)
    assert said == ["<s>", "it", "was", "<mask>", "and", "one", "two", "</s>"]


def test_words_that_make_no_sense():
    def cloze(verbalizer, template=PATTERNS["llama"]):
        return bind(Classify(template=template, by=Verbalizer(verbalizer)), "llama")

    refused(lambda: cloze({"no": [], "yes": " good"}), "label 'no' has no word")
    refused(lambda: cloze({"no": [" bad", " good"], "yes": " good"}), "are the same token")
    refused(lambda: cloze({"no": [" bad", " bads"], "yes": " good"}), "' bads' must be one token")
    refused(lambda: cloze(WORDS, "{text} {mask} it was"), "{mask} must be at its end")
    refused(lambda: cloze(WORDS, "{mask} {text} {mask}"), "{mask} must be at its end")
    refused(lambda: bind(Classify(template="{text} {mask}", by=TrainedHead(("a", "b"))), "llama"),
            "leave it out")  # fmt: skip


def test_lists_of_words_are_written_down():
    task = Classify(template=PATTERNS["llama"], by=Verbalizer(WORDS))
    assert from_spec(task.describe()) == task


# ------------------------------------------------------------------------ scores as labels


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn():
    scores = torch.randn(5, 3)
    for logits in (scores.clone(), scores + 7):
        logits.requires_grad_(True)
        loss = Distillation(2.0).loss(logits, scores, None)
        (slope,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(loss, torch.zeros(()), rtol=0, atol=1e-5)
        torch.testing.assert_close(slope, torch.zeros(5, 3), rtol=0, atol=1e-5)


def test_distillation_is_the_divergence_of_the_softened():
    loss = Distillation(2.0).loss(
        torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3), 0.0]]), None
    )
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert math.isclose(float(loss), expected, rel_tol=1e-5)


@pytest.mark.parametrize("family", KINDS)
def test_a_row_learns_by_its_scores(family):
    base = fresh(family)
    task = bind(Classify(by=TrainedHead(("no", "yes")), objective=Distillation(3.0)), family, base)
    add_head(base, task)
    scores = torch.tensor([[1.0, -2.0], [0.5, 0.5]])
    rows = examples(*({"text": "dull", "scores": own} for own in scores.tolist()))
    batch = task.collate(task.encode_all(rows))
    loss, count = loss_of(task, base, batch)
    assert count == 2
    logits = task.outputs(base, batch).scores
    torch.testing.assert_close(loss, Distillation(3.0).loss(logits, scores, None))


def test_a_teachers_own_scores_leave_an_inlay_as_it_is():
    base = fresh("llama")
    fields = {"template": PATTERNS["llama"], "by": Verbalizer(WORDS)}
    task = bind(Classify(**fields), "llama", base)
    student = bind(Classify(**fields, objective=Distillation()), "llama", base)
    handle = inlay.attach(base, inlay.LoRA(rank=2))
    for parameter in handle.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    said = task.outputs(base, task.collate(task.encode_all(ROWS))).scores
    rows = examples(
        *({**row.fields, "scores": own} for row, own in zip(ROWS, said.tolist(), strict=True))
    )
    loss, _ = loss_of(student, base, student.collate(student.encode_all(rows)))
    loss.backward()
    for parameter in handle.parameters():
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter), rtol=0, atol=1e-4)


def test_scores_that_make_no_sense():
    by = TrainedHead(("no", "yes"))
    task = bind(Classify(by=by, objective=Distillation()), "llama")
    for scores in ([1.0], [1.0, math.nan], [1.0, "2"], [1.0, 2.0, 3.0]):
        bad = examples({"text": "dull", "scores": scores})
        refused(lambda bad=bad: task.encode_all(bad), "rows#1: scores must be 2", error=DataError)
    mixed = examples({"text": "dull", "scores": [1, 2]}, {"text": "dull", "label": "no"})
    refused(
        lambda: task.collate(task.encode_all(mixed)), "rows#2: it has no label", error=DataError
    )
    plain = bind(Classify(by=by), "llama")
    (row,) = plain.encode_all(examples({"text": "dull", "label": "yes", "scores": 3}))
    assert row.labels == [1]  # without distillation the column means something else


def test_a_label_next_to_scores_is_only_measured():
    task = bind(Classify(by=TrainedHead(("no", "yes")), objective=Distillation()), "llama")
    rows = examples({"text": "dull", "scores": [1, 2], "label": "no"})
    assert task.encode_all(rows)[0].labels == [1.0, 2.0]
    assert task.required_fields == ("text", "label")
    assert task.score(["no"], rows)["accuracy"] == 1


def test_scores_are_read_from_files():
    (row,) = load([{"text": "dull", "scores": [0.5, -1]}])
    assert row.fields["scores"] == [0.5, -1]
