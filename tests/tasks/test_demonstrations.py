"""Worked examples in front of every row, and several references behind one."""

import pytest

import inlay
from inlay import LoRA
from inlay.errors import DataError
from inlay.tasks import Generate, from_spec, metrics
from inlay.training import evaluate
from tests.tasks.tiny import CHAT, examples, loss_of, refused, tokenizer, words
from tests.zoo import fresh, model

PAIRS = {"the": "a", "cat": "b", "dog": "c", "sat": "d", "on": "e", "mat": "f"}
ROWS = examples(*({"source": source, "target": target} for source, target in PAIRS.items()))
TWO = [{"source": "red", "target": "blue"}, {"source": "one", "target": "two"}]


def bound(family="llama", read=None, base=None, **fields):
    task = Generate(**fields)
    task.bind(model(family) if base is None else base, words(family) if read is None else read)
    return task


def test_they_are_drawn_once_from_the_training_data():
    drawn = []
    for seed in (0, 0, 1):
        task = Generate(demonstrations=3, seed=seed)
        task.prepare(iter(ROWS))
        task.prepare(ROWS[:3])  # a second time changes nothing
        drawn.append(task.demonstrations)
        assert from_spec(task.describe()) == task, "an inlay's recipe brings them along"
    assert drawn[0] == drawn[1] != drawn[2]
    pairs = [row.fields for row in ROWS]
    assert len(drawn[0]) == 3 and all(one in pairs for one in drawn[0])
    none = Generate()
    none.prepare(ROWS)
    assert none.demonstrations == 0


def test_they_stand_in_front_as_rows_do():
    read = words("llama")
    for family, joint in (("llama", ""), ("t5", " ")):
        read = words(family)
        task = bound(family, read, demonstrations=TWO, template="the {source} was ")
        assert (
            task.encode(ROWS[1], 0).input_ids
            == read(f"the red was {joint}blue the one was {joint}two the cat was").input_ids
        )
    assert read.decode(task.encode(ROWS[1], 0).labels) == read.decode(
        bound(family, read).encode(ROWS[1], 0).labels
    )


def test_in_a_chat_they_are_turns():
    read = tokenizer("decoder", bos=True, chat=CHAT)
    task = bound("llama", read, chat=True, system="old", demonstrations=TWO[:1])
    asked = "system : old </s> user : red </s> assistant : blue </s> user : cat </s> good :"
    assert task.encode(ROWS[1], 0).input_ids == read(asked, add_special_tokens=False).input_ids


def test_their_virtual_tokens_are_left_out():
    task = bound(demonstrations=TWO, template="{p*2} {source}")
    ids = task.encode(ROWS[0], 0).input_ids
    assert [i for i in ids if i >= task.bound.first_virtual_id] == [
        task.bound.first_virtual_id,
        task.bound.first_virtual_id + 1,
    ]


def test_truncation_leaves_them():
    read = words("llama")
    (long,) = examples({"source": "one two three four five six", "target": "a"})
    task = bound("llama", read, demonstrations=TWO[:1], truncate=True, max_length=7)
    assert read.decode(task.encode(long, 0).input_ids).split()[-4:] == ["red", "blue", "one", "two"]
    task = bound("llama", read, demonstrations=TWO, truncate=True, max_length=5)
    refused(lambda: task.encode(long, 0), "even without its text", error=DataError)


def test_an_empty_text_behind_them_is_still_empty():
    (empty,) = examples({"source": " ", "target": "a"})
    task = bound(demonstrations=TWO)
    refused(lambda: task.encode(empty, 0), "rows#1: its text is empty", error=DataError)


@pytest.mark.parametrize("chat", [False, True])
def test_they_run_once_for_all_rows(chat):
    """The opening that rows share is taken out, in training and while a text is written."""
    base = fresh("llama")
    inlay.attach(base, LoRA(rank=2), name="default")
    many = [*TWO, {"source": "three four", "target": "five six"}]
    short = CHAT.replace("{{ m['role'] }} :", "{{ m['role'][0] }}")
    read = tokenizer("decoder", bos=True, chat=short if chat else None)
    task = bound("llama", read, base, demonstrations=many, chat=chat,
                 generation={"max_new_tokens": 1})  # fmt: skip
    batch = task.collate(task.encode_all(ROWS))
    ids = batch.inputs["input_ids"]
    shared = int((ids == ids[:1]).all(0).long().cumprod(0).sum())
    assert shared >= 9
    seen = []
    base.model.layers[0].register_forward_hook(lambda *args: seen.append(args[2].shape[:2]))
    loss_of(task, base, batch)
    assert seen == [(1, shared), (len(ROWS), ids.shape[1] - shared)]
    seen.clear()
    task.predict(base, batch)
    shape = seen[1]
    assert seen[0] == (1, shared) and shape[0] == len(ROWS) and shape[1] <= 1 + 4 * chat


def test_what_is_impossible():
    task = Generate(demonstrations=7)
    refused(lambda: task.prepare(ROWS), "6 rows are fewer than demonstrations=7", error=DataError)
    refused(lambda: bound(demonstrations=2), "not drawn yet; call prepare(training examples)")
    refused(lambda: Generate(demonstrations=-1), "less than none")
    refused(lambda: Generate(demonstrations="two"), "demonstrations='two' is impossible")
    refused(
        lambda: bound(demonstrations=[{"source": "a"}]),
        "demonstration 1: there is no field 'target'",
        error=DataError,
    )


# ------------------------------------------------------------------- several references


def test_the_first_of_several_references_is_learned_and_the_best_counts():
    several = examples(
        {"source": "red", "targets": ["a cat", "a dog"]}, {"source": "one", "targets": ["bad"]}
    )
    task = bound(target="targets")
    assert task.required_fields == ("source", "targets")
    first = examples({"source": "red", "target": "a cat"})[0]
    assert task.encode(several[0], 0) == bound().encode(first, 0)
    scores = task.score(["a dog", "good"], several)
    assert scores["exact_match"] == 0.5
    assert scores["rougeL"] == pytest.approx(50)
    refused(
        lambda: task.encode(examples({"source": "a", "targets": []})[0], 0),
        "rows#1: targets must be a list of at least one text",
        error=DataError,
    )
    assert 0 <= evaluate(model("llama"), task, several)["bleu"] <= 100


def test_bleu_and_chrf_are_those_of_several_references():
    from sacrebleu import corpus_bleu, corpus_chrf

    said = ["the cat sat on a mat today", "one two three four five"]
    lists = [["a cat sat on the mat", "the cat sat on a mat now"], ["one two three four six"]]
    found = metrics.generation(said, lists)
    streams = [[lists[0][0], lists[1][0]], [lists[0][1], None]]
    assert found["bleu"] == pytest.approx(corpus_bleu(said, streams).score)
    assert found["chrf"] == pytest.approx(corpus_chrf(said, streams).score)
    fewer = metrics.generation(said, [one[:1] for one in lists])
    assert all(found[name] >= fewer[name] for name in fewer) and found["bleu"] > fewer["bleu"]
    assert metrics.generation(said, [one[0] for one in lists]) == fewer
