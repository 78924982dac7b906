"""The classify task: by a word of the language model, and by a trained head."""

import copy
import json

import pytest
import torch
from torch.nn import functional as F

import inlay
from inlay.data.labels import label_name
from inlay.errors import DataError
from inlay.methods.head import Head
from inlay.methods.lora import LoRA
from inlay.runtime.trained_heads import head_of
from inlay.tasks import (
    BinaryCrossEntropy,
    Classify,
    CrossEntropy,
    Distillation,
    TrainedHead,
    Verbalizer,
    from_spec,
)
from inlay.tasks.outputs import BinaryScores
from tests.tasks.tiny import KINDS, bind, examples, loss_of, refused, words
from tests.zoo import fresh, model

WORDS = {"no": " bad", "yes": " good"}
TEMPLATES = {"llama": "{text} it was", "bert": "{text} it was {mask} .", "t5": "{text} it was"}
ROWS = examples(
    {"text": "the cat sat on a mat", "label": "yes"},
    {"text": "dull", "label": "no"},
    {"text": "very bright film", "label": "yes"},
)


def by_word(family, base=None, words=WORDS, weight=0.0, **fields):
    by = Verbalizer(words, weight)
    return bind(Classify(by=by, **{"template": TEMPLATES[family], **fields}), family, base)


# ------------------------------------------------------------------------ by a word


def own_scores(family, base, row):
    """The scores of " bad" and " good" as the model's own forward gives them."""
    read = words(family)
    pair = [read(word, add_special_tokens=False).input_ids[0] for word in WORDS.values()]
    text = TEMPLATES[family].replace("{text}", row.fields["text"])
    ids = read(text.replace("{mask}", "<mask>"), return_tensors="pt").input_ids
    if family == "t5":
        logits = base(input_ids=ids, decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
    elif family == "bert":
        logits = base(input_ids=ids).logits[0, ids[0].tolist().index(read.mask_token_id)]
    else:
        logits = base(input_ids=ids).logits[0, -1]
    return logits[pair]


@pytest.mark.parametrize("family", KINDS)
@torch.no_grad()
def test_a_padded_batch_scores_words_as_the_model_does(family):
    base, task = model(family), by_word(family)
    batch = task.collate(task.encode_all(ROWS))
    expected = torch.stack([own_scores(family, base, row) for row in ROWS])
    torch.testing.assert_close(task.outputs(base, batch).scores, expected, rtol=1e-4, atol=1e-4)
    loss, count = loss_of(task, base, batch)
    gold = torch.tensor([1, 0, 1])
    torch.testing.assert_close(loss, F.cross_entropy(expected, gold, reduction="sum"))
    assert count == len(ROWS)
    assert task.predict(base, batch) == [["no", "yes"][i] for i in expected.argmax(1)]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_head_sees_one_position_a_row(family):
    base = fresh(family)
    task = by_word(family, base)
    seen = []
    base.get_output_embeddings().register_forward_hook(lambda *a: seen.append(a[2].shape))
    task.predict(base, task.collate(task.encode_all(ROWS)))
    assert seen == [(len(ROWS), 99)]


def test_words_must_be_single_tokens():
    refused(
        lambda: by_word("llama", words={"no": " bad", "yes": " go"}),
        "the word ' go' must be one token, and is 2: ['g', '##o']",
    )
    refused(lambda: by_word("llama", words={"no": "", "yes": "good"}), "is 0: []")
    refused(lambda: by_word("llama", words={"no": "§", "yes": "good"}), "does not know")
    refused(
        lambda: by_word("llama", words={"no": " good", "yes": "good"}),
        "' good' and 'good' are the same token",
    )


def test_templates_that_do_not_fit():
    refused(lambda: Classify(by=Verbalizer(WORDS)), "a verbalizer needs a template")
    refused(lambda: Classify(by=Verbalizer(WORDS), template="it was {mask}"), "has no {column}")
    refused(lambda: by_word("llama", template="{mask} {text}"), "{mask} must be at its end")
    refused(lambda: by_word("t5", template="{text} {mask}"), "the sentinel <extra_id_0>")
    refused(
        lambda: by_word("bert", template="{text} it was"), "an encoder needs exactly one {mask}"
    )
    refused(
        lambda: by_word("bert", template="{mask} {text} {mask}"),
        "an encoder needs exactly one {mask}",
    )
    task = by_word("bert")
    own = examples({"text": "a <mask> film", "label": "no"})[0]
    refused(
        lambda: task.encode(own, 0), "rows#1: its text contains the mask token", error=DataError
    )


def test_a_verbalizer_needs_a_language_model():
    task = Classify(by=Verbalizer(WORDS), template="{text} {mask}")
    refused(lambda: task.bind(model("bert").bert, words("bert")), "needs a language-model head")


def test_several_columns_in_a_template():
    task = by_word("llama", template="{premise} and {hypothesis} it was")
    row = examples({"premise": "a cat", "hypothesis": "a dog", "label": "no"})[0]
    expected = words("llama")("a cat and a dog it was").input_ids
    assert task.encode(row, 0).input_ids == expected
    assert task.required_fields == ("premise", "hypothesis", "label")
    assert by_word("bert").required_fields == ("text", "label")


# ---------------------------------------------------------------- by a trained head


def by_head(family, labels=("no", "yes"), spec=None, **fields):
    base = fresh(family)
    piece = inlay.attach(base, LoRA(rank=2) + Head(labels=labels) if spec is None else spec)
    for parameter in piece.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    task = Classify(by=TrainedHead(labels), **fields)
    task.bind(base, words(family))
    return base, task


@pytest.mark.parametrize("family", KINDS)
def test_a_trained_head_classifies_a_padded_batch(family):
    base, task = by_head(family)
    rows = task.encode_all(ROWS)
    loss, count = loss_of(task, base, task.collate(rows))
    apart = [loss_of(task, base, task.collate([row]))[0] for row in rows]
    torch.testing.assert_close(loss, sum(apart), rtol=1e-4, atol=1e-4)
    assert count == len(ROWS)
    loss.backward()
    assert head_of(base, "default").weight.grad.abs().sum() > 0
    together = task.predict(base, task.collate(rows))
    assert together == [task.predict(base, task.collate([row]))[0] for row in rows]


def test_a_head_for_other_labels_is_refused():
    base, task = by_head("llama", spec=Head(labels=("yes", "no")))
    batch = task.collate(task.encode_all(ROWS))
    refused(
        lambda: loss_of(task, base, batch),
        "add Head(labels=('no', 'yes')) to it; its heads: ['yes', 'no']",
    )
    base, task = by_head("llama", spec=LoRA(rank=2))
    refused(lambda: task.predict(base, batch), "no attached inlay has a trained head")


@pytest.mark.parametrize("family", KINDS)
def test_pairs(family):
    base, task = by_head(family)
    read = words(family)
    pair, single = examples(
        {"text": "a cat", "text_pair": "a dog", "label": "no"}, {"text": "dull", "label": "yes"}
    )
    row, alone = task.encode_all([pair, single])
    assert alone == task.encode(single, 1)
    if family == "llama":
        assert row.input_ids == read("a cat a dog").input_ids  # joined by a line break
    else:
        assert row.input_ids == read("a cat", "a dog").input_ids
    if family == "bert":
        kinds = [0, 0, 0, 0, 1, 1, 1]
        assert row.token_type_ids == kinds
        batch = task.collate([row, alone])
        assert batch.inputs["token_type_ids"].tolist() == [kinds, [0] * 7]
        assert "token_type_ids" not in task.collate([alone]).inputs
    else:
        assert row.token_type_ids is None
    loss_of(task, base, task.collate([row, alone]))


def test_a_copy_of_the_model_is_used_as_itself():
    base, task = by_head("llama")
    batch = task.collate(task.encode_all(ROWS))
    before = task.outputs(base, batch).scores
    other = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(task.outputs(other, batch).scores, before)
    torch.testing.assert_close(task.outputs(base, batch).scores, before)


# ----------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("value", "name"),
    [(True, "true"), (False, "false"), (1, "1"), (1.0, "1"), (0.5, "0.5"), ("1", "1"), ("a", "a")],
)
def test_label_names(value, name):
    assert label_name(value) == name


def test_labels_come_from_the_training_data_sorted():
    task = Classify()
    task.bind(model("bert"), words("bert"))
    refused(lambda: task.encode(ROWS[0], 0), "the labels are not known yet")
    task.prepare(ROWS)
    assert task.labels == ("no", "yes")
    assert task.encode(ROWS[0], 0).labels == [1]
    assert from_spec(task.describe()) == task
    task.prepare(examples({"label": "x"}, {"label": "y"}))
    assert task.labels == ("no", "yes")


def test_a_label_outside_the_set_is_named():
    task = by_word("llama")
    odd = examples({"text": "a", "label": "Yes"})[0]
    refused(
        lambda: task.encode(odd, 0),
        "rows#1: there is no label 'Yes'; did you mean 'yes'?",
        error=DataError,
    )
    refused(
        lambda: Classify().prepare(examples({"text": "a"})), "no field 'label'", error=DataError
    )
    blank = examples({"text": "a", "label": ""})
    refused(lambda: Classify().prepare(blank), "rows#1: its label is empty", error=DataError)


def test_label_sets_that_make_no_sense():
    refused(lambda: Classify(by=TrainedHead(["a"])), "from 2 to 1000 labels, not 1")
    refused(lambda: Classify(by=TrainedHead(["a", "b", "a"])), "label 'a' is given twice")
    many = examples(*({"label": number} for number in range(1001)))
    refused(lambda: Classify().prepare(many), "not 1001")
    refused(lambda: Classify(by=TrainedHead("ab")), "labels='ab' is impossible")
    refused(lambda: Classify(metric="f2"), "metric='f2' is impossible")
    refused(
        lambda: Classify(metric="f1", by=TrainedHead(["a", "b", "c"])),
        "'f1' is for two labels, not 3",
    )
    refused(lambda: Classify(metric="micro_f1"), "metric='micro_f1' is none of cross_entropy")
    refused(
        lambda: Classify(metric="matthews", objective=BinaryCrossEntropy()),
        "metric='matthews' is none of binary_cross_entropy",
    )
    f1 = Classify(metric="f1")
    refused(lambda: f1.prepare(examples(*({"label": n} for n in range(3)))), "two labels, not 3")


def test_labels_have_the_order_of_the_words():
    task = by_word("llama", words=dict(reversed(WORDS.items())))
    plain = by_word("llama")
    batch = task.collate(task.encode_all(ROWS))
    base = model("llama")
    with torch.no_grad():
        scores, reversed_scores = (one.outputs(base, batch).scores for one in (plain, task))
        torch.testing.assert_close(reversed_scores, scores.flip(1))
    assert task.predict(base, batch) == plain.predict(base, batch)


def test_numbers_and_truth_values_are_labels():
    task = Classify(by=TrainedHead([0, 1]))
    task.bind(model("bert"), words("bert"))
    rows = examples({"text": "a", "label": 1}, {"text": "a", "label": 0.0})
    assert [row.labels for row in task.encode_all(rows)] == [[1], [0]]
    spoken = Classify(by=Verbalizer({False: "no", True: "yes"}), template="{text}")
    assert spoken.labels == ("false", "true")


# ---------------------------------------------------------------------- long and empty


@pytest.mark.parametrize(
    ("family", "template", "limit", "kept"),
    [
        ("llama", "{text} it was", 5, "one two it was"),
        ("t5", "{text} it was", 5, "one two it was"),
        ("bert", "{text} it was {mask} .", 8, "one two it was <mask> ."),
    ],
)
def test_truncation_keeps_the_template(family, template, limit, kept):
    row = examples({"text": "one two three four five", "label": "no"})[0]
    task = by_word(family, template=template, max_length=limit)
    refused(lambda: task.encode(row, 0), "rows#1: its input is", f"{limit} fit", error=DataError)
    task = by_word(family, template=template, max_length=limit, truncate=True)
    assert task.encode(row, 0).input_ids == words(family)(kept).input_ids


def test_truncation_of_a_pair_shortens_the_longer_one():
    _, task = by_head("bert", max_length=8, truncate=True)
    row = examples({"text": "one two three four five", "text_pair": "a cat", "label": "no"})[0]
    assert task.encode(row, 0).input_ids == words("bert")("one two three", "a cat").input_ids


def test_empty_text():
    _, task = by_head("bert")
    empty = examples({"text": "", "label": "no"})[0]
    refused(lambda: task.encode(empty, 0), "rows#1: its text is empty", error=DataError)
    task = by_word("bert")
    expected = words("bert")("it was <mask> .").input_ids
    assert task.encode(empty, 0).input_ids == expected


def test_rows_without_a_label():
    task = by_word("llama")
    rows = task.encode_all(examples({"text": "a"}, {"text": "a", "label": "no"}))
    refused(lambda: task.collate(rows), "rows#1: it has no label or target", error=DataError)
    batch = task.collate(rows[:1])
    refused(lambda: loss_of(task, model("llama"), batch), "to learn from", error=DataError)
    assert task.predict(model("llama"), batch)[0] in WORDS


def test_score():
    scores = by_word("llama").score(["yes", "no", "no"], ROWS)
    assert scores["accuracy"] == pytest.approx(2 / 3)


def test_scores_of_two_labels_and_their_confusion():
    task = by_word("llama")
    rows = examples(*({"label": label} for label in ("yes", "yes", "yes", "no")))
    said = ["yes", "no", "yes", "yes"]
    scores = task.score(said, rows)
    assert scores["f1"] == pytest.approx(2 * 2 / (3 + 3)), "that of 'yes', the second label"
    assert task.confusion(said, rows) == {"no": {"no": 0, "yes": 1}, "yes": {"no": 1, "yes": 2}}
    three = Classify(by=TrainedHead(["no", "yes", "maybe"]))
    assert "f1" not in three.score(said, rows)
    assert three.confusion(said, rows)["yes"] == {"no": 1, "yes": 2, "maybe": 0}
    odd = examples({"label": "ja"})
    refused(lambda: task.confusion(["yes"], odd), "no label 'ja'", error=DataError)


# ------------------------------------------------------------------- any number of labels

TOPICS = ("cat", "dog", "film")
MANY = examples(
    {"text": "the cat sat on a mat", "labels": ["cat", "film"]},
    {"text": "dull", "labels": []},
    {"text": "very bright film", "labels": ["dog", "dog"]},
)


@pytest.mark.parametrize("family", KINDS)
@torch.no_grad()
def test_many_labels_are_decided_each_by_itself(family):
    base, task = by_head(family, labels=TOPICS, objective=BinaryCrossEntropy())
    rows = task.encode_all(MANY)
    assert [row.labels for row in rows] == [[0, 2], [], [1]]
    batch = task.collate(rows)
    logits = task.outputs(base, batch).scores
    gold = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])
    chances = logits.sigmoid()
    by_hand = -(gold * chances.log() + (1 - gold) * (1 - chances).log()).sum() / 3
    loss, count = loss_of(task, base, batch)
    torch.testing.assert_close(loss, by_hand, rtol=1e-4, atol=1e-4)
    assert count == 3
    said = task.predict(base, batch)
    for row, names in zip(logits, said, strict=True):
        assert names == [name for name, z in zip(TOPICS, row, strict=True) if z > 0]


@torch.no_grad()
def test_rows_that_have_a_label_can_weigh_more():
    base, task = by_head("llama", labels=TOPICS, objective=BinaryCrossEntropy("balanced"))
    often = examples(*({"text": "a", "labels": ["cat"]} for _ in range(3)), {"text": "a", "labels": []})  # fmt: skip
    task.prepare([*MANY, *often])  # cat 4 of 7, dog and film 1 of 7
    batch = task.collate(task.encode_all(MANY))
    chances = task.outputs(base, batch).scores.sigmoid()
    gold = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])
    weighed = torch.tensor([3 / 4, 6, 6]) * gold * chances.log()
    by_hand = -(weighed + (1 - gold) * (1 - chances).log()).sum() / 3
    torch.testing.assert_close(loss_of(task, base, batch)[0], by_hand, rtol=1e-4, atol=1e-4)


def test_a_vote_on_every_label(monkeypatch):
    task = Classify(by=TrainedHead(TOPICS), objective=BinaryCrossEntropy())
    table = torch.tensor([[1.0, -1, 2], [1, -1, -5], [-9, -1, 1], [-1, -1, 0]])
    monkeypatch.setattr(task, "outputs", lambda model, batch: BinaryScores(table))
    said, won = task.vote(None, {}, 2)
    assert said == [["cat", "film"], ["cat"], ["film"], []]
    assert won == [["cat"], ["film"]]  # one vote each, and means of -1.5 and 0.5


def test_many_labels_come_from_a_list():
    task = Classify(objective=BinaryCrossEntropy())
    assert task.required_fields == ("text", "labels")
    task.prepare(MANY)
    assert task.labels == TOPICS
    task.bind(model("bert"), words("bert"))
    assert from_spec(task.describe()) == task
    plain = examples({"text": "a", "labels": "cat"})[0]
    refused(lambda: task.encode(plain, 0), "'labels' is a text, not a list", error=DataError)
    nested = examples({"text": "a", "labels": [["cat"]]})[0]
    refused(lambda: task.encode(nested, 0), "rows#1: a label is a list", error=DataError)
    odd = examples({"text": "a", "labels": ["cat", "films"]})[0]
    refused(lambda: task.encode(odd, 0), "no label 'films'; did you mean 'film'", error=DataError)
    refused(
        lambda: Classify(
            objective=BinaryCrossEntropy(), by=Verbalizer(WORDS), template="{text} it was"
        ),
        "any number of labels takes a trained head",
    )
    assert task.confusion([["cat"]], MANY[:1]) == {}


def test_scores_of_many_labels():
    task = Classify(by=TrainedHead(TOPICS), objective=BinaryCrossEntropy())
    said = [["cat"], [], ["dog"]]
    assert task.score(said, MANY) == pytest.approx(
        {"accuracy": 2 / 3, "micro_f1": 2 * 2 / (2 + 3), "macro_f1": 2 / 3}
    )


# ------------------------------------------------------------------- names and weights


def test_labels_are_renamed():
    named = {0: "bad", "1": "good"}
    task = Classify(
        label_names=named, by=Verbalizer({"bad": "bad", "good": "good"}), template="{text}"
    )
    assert task.label_names == {"0": "bad", "1": "good"}
    task.bind(model("llama"), words("llama"))
    rows = examples(*({"text": "a", "label": label} for label in (1, 0.0, "1", "bad")))
    assert [row.labels for row in task.encode_all(rows)] == [[1], [0], [1], [0]]
    assert task.score(["good", "bad", "good", "bad"], rows)["accuracy"] == 1
    assert task.confusion(["good"], rows[:1])["good"]["good"] == 1
    assert Classify(label_names=named).labels == ("bad", "good")
    merged = Classify(label_names={"1": "bad", "2": "bad", "3": "good"})
    assert merged.labels == ("bad", "good")
    merged.prepare(examples({"label": 2}))
    assert merged.labels == ("bad", "good")
    odd = examples({"text": "a", "label": 7})[0]
    refused(lambda: task.encode(odd, 0), "there is no label '7'", error=DataError)
    refused(
        lambda: Classify(label_names={"0": "bat"}, by=TrainedHead(["bad", "good"])),
        "label_names makes a label 'bat', which is none of the labels; did you mean 'bad'?",
    )
    assert from_spec(task.describe()) == task


@pytest.mark.parametrize("way", ["word", "head"])
@torch.no_grad()
def test_rare_labels_can_weigh_more(way):
    weights = {"objective": CrossEntropy({"no": 3})}
    base, task = (model("llama"), by_word("llama", **weights)) if way == "word" else by_head("llama", **weights)  # fmt: skip
    batch = task.collate(task.encode_all(ROWS))
    logits, gold = task.outputs(base, batch).scores, torch.tensor([1, 0, 1])
    each = F.cross_entropy(logits, gold, reduction="none")
    loss, count = loss_of(task, base, batch)
    torch.testing.assert_close(loss, each[0] + 3 * each[1] + each[2])
    assert count == 3
    balanced = by_word("llama", objective=CrossEntropy("balanced"))
    batch = balanced.collate(balanced.encode_all(ROWS))
    refused(lambda: loss_of(balanced, model("llama"), batch), "call prepare(training examples)")
    balanced.prepare(ROWS)
    each = F.cross_entropy(balanced.outputs(model("llama"), batch).scores, gold, reduction="none")
    expected = 0.75 * each[0] + 1.5 * each[1] + 0.75 * each[2]
    torch.testing.assert_close(loss_of(balanced, model("llama"), batch)[0], expected)
    joint = by_word("llama", objective=CrossEntropy("balanced"), weight=1e-9)
    joint.prepare(ROWS)
    with torch.enable_grad():
        torch.testing.assert_close(loss_of(joint, model("llama"), batch)[0].detach(), expected)
    assert from_spec(task.describe()) == task


def test_weights_that_make_no_sense():
    refused(
        lambda: by_word("llama", objective=CrossEntropy({"nos": 2.0})),
        "class_weight has a label 'nos', which is none of the labels; did you mean 'no'?",
    )
    refused(
        lambda: by_word("llama", objective=CrossEntropy({"no": 0})),
        "of 'no' must be above 0, not 0",
    )
    refused(lambda: CrossEntropy("even"), "class_weight='even' is impossible")
    later = Classify(objective=CrossEntropy({"nos": 2.0}))
    refused(lambda: later.prepare(ROWS), "class_weight has a label 'nos'")


def test_round_trip():
    task = Classify(by=Verbalizer(WORDS), template="{text} it was", truncate="start", max_length=9)
    assert from_spec(task.describe()) == task
    assert from_spec({"task": "classify", "by": {"labels": ["a", "b"]}}) == Classify(
        by=TrainedHead(("a", "b"))
    )


@pytest.mark.parametrize(
    "task",
    [
        Classify(by=Verbalizer({"a": "good", "b": ["bad", "dull"]}, 0.1), template="{text} was"),
        Classify(
            by=TrainedHead(("a", "b")), objective=BinaryCrossEntropy({"a": 2.0}), metric="micro_f1"
        ),
        Classify(objective=CrossEntropy("balanced")),
        Classify(objective=Distillation(3.0), label_names={"0": "a", "1": "b"}),
    ],
)
def test_choices_survive_as_json(task):
    assert from_spec(json.loads(json.dumps(task.describe()))) == task


@pytest.mark.parametrize(
    ("fields", "task"),
    [
        ({"by": {}}, Classify()),
        ({"by": {"kind": "trained_head"}}, Classify()),
        (
            {"by": {"words": WORDS}, "template": "{text}"},
            Classify(by=Verbalizer(WORDS), template="{text}"),
        ),
        ({"objective": {"class_weight": {"a": 2}}}, Classify(objective=CrossEntropy({"a": 2}))),
        ({"objective": {"temperature": 4}}, Classify(objective=Distillation(4))),
        (
            {"objective": {"kind": "binary_cross_entropy", "class_weight": "balanced"}},
            Classify(objective=BinaryCrossEntropy("balanced")),
        ),
    ],
)
def test_a_choice_follows_from_its_fields_or_its_kind(fields, task):
    assert from_spec({"task": "classify", **fields}) == task


@pytest.mark.parametrize(
    ("fields", "cure"),
    [
        ({"verbalizer": WORDS}, "by: {words:"),
        ({"labels": ["a", "b"]}, "by: {labels:"),
        ({"auxiliary": 0.1}, "auxiliary_weight"),
        ({"multi_label": True}, "objective: {kind: binary_cross_entropy}"),
        ({"class_weight": "balanced"}, "objective: {class_weight:"),
        ({"temperature": 2.0}, "objective: {temperature:"),
        ({"by": {"lables": ["a"]}}, "did you mean 'labels'"),
        ({"by": {"kind": "words"}}, "no kind 'words'"),
        ({"by": {"auxiliary_weight": 0.1}}, "needs words"),
        ({"by": {"labels": ["a", "b"], "words": WORDS}}, "do not go together"),
        ({"by": {"kind": "trained_head", "words": WORDS}}, "no field 'words'"),
        ({"by": "verbalizer"}, "must be TrainedHead or Verbalizer"),
        ({"objective": {"temperature": 0}}, "temperature=0"),
    ],
)
def test_a_spelling_that_is_not_one_is_refused_with_the_cure(fields, cure):
    refused(lambda: from_spec({"task": "classify", **fields}), cure)
