"""The extract task: questions, contexts, windows over them, and answers out of them."""

import time

import pytest
import torch
from torch.nn import functional as F

import inlay
from inlay import Head, LoRA
from inlay.data.loading import load
from inlay.errors import DataError
from inlay.runtime.trained_heads import head_of
from inlay.tasks import Extract, from_spec, metrics
from inlay.tasks.outputs import SpanScores
from inlay.training import evaluate
from inlay.training.loop.evaluation import predict
from inlay.training.recipes.ensemble import vote
from inlay.training.recipes.run import spec_with_head
from tests.tasks.tiny import (
    KINDS,
    WORDS,
    add_head,
    add_two_heads,
    bind,
    examples,
    loss_of,
    refused,
    words,
)
from tests.zoo import fresh, model


def question_row(question, context, *answers):
    found = [{"text": text, "start": context.index(text)} for text in answers]
    return {"question": question, "context": context, "answers": found}


ROWS = examples(
    question_row("cat", "the cat sat on a mat", "sat on", "mat"),
    question_row("dog", "the dog was bad", "bad"),
    question_row("film", "a plot"),
)


def bound(family="bert", base=None, **fields):
    return bind(Extract(**fields), family, base)


def with_head(family, spec=None, **fields):
    base = fresh(family)
    task = bound(family, base, **fields)
    add_head(base, task, spec)
    return base, task


# -------------------------------------------------------------------------------- rows


def test_a_row_is_the_tokenizer_s_own_pair():
    read = words("bert")("cat", "the cat sat on a mat", return_token_type_ids=True)
    row = bound().encode(ROWS[0], 3)
    assert row.input_ids == read.input_ids
    assert row.token_type_ids == read.token_type_ids
    said = words("bert").convert_ids_to_tokens(row.input_ids)
    assert said[row.labels[0] : row.labels[1] + 1] == ["sat", "on"], "the first of its answers"
    assert (row.index, row.where) == (3, "rows#1")


def test_an_encoder_decoder_reads_a_pair_without_kinds():
    row = bound("t5").encode(ROWS[0], 0)
    assert row.input_ids == words("t5")("cat", "the cat sat on a mat").input_ids
    assert row.token_type_ids is None
    assert "token_type_ids" not in bound("t5").collate([row]).inputs


def test_a_decoder_reads_the_question_first_and_an_end_token_last():
    read = words("llama")
    row = bound("llama").encode(ROWS[0], 0)
    assert row.input_ids == [*read("cat the cat sat on a mat").input_ids, read.eos_token_id]
    assert row.begin == 2  # <s> cat


def test_no_answer_is_the_last_token():
    for family in KINDS:
        row = bound(family).encode(ROWS[2], 0)
        assert row.labels == [len(row) - 1] * 2
        assert row.input_ids[-1] == words(family).eos_token_id


@pytest.mark.parametrize("text", ["שלום", "👩‍👩‍👧", "nine"])
def test_answers_are_counted_in_characters(text):
    context = f"one 👩‍👩‍👧 two שלום 🇦🇶 nine {text} ten"
    start = context.rindex(text)
    (row,) = examples(
        {"question": "q", "context": context, "answers": [{"text": text, "start": start}]}
    )
    made = bound().encode(row, 0)
    first, last = made.labels
    begin, end = made.offsets[first - made.begin][0], made.offsets[last - made.begin][1]
    assert context[begin:end] == text
    assert begin == start
    said = bound().merge_windows([made], [(first, last, 1.0)], [row])
    assert said == [text]


def test_an_answer_within_a_word_is_the_word_s_own_tokens():
    (row,) = examples(
        {"question": "q", "context": "zxq one", "answers": [{"text": "xq", "start": 1}]}
    )
    made = bound().encode(row, 0)
    assert bound().merge_windows([made], [(*made.labels, 1.0)], [row]) == ["xq"]


# ----------------------------------------------------------------------------- windows


LONG = " ".join(WORDS[:20])


@pytest.mark.parametrize("family", KINDS)
def test_windows_cover_the_context_and_share_their_stride(family):
    (row,) = examples(question_row("cat", LONG, WORDS[9]))
    whole = bound(family, max_length=64).encode(row, 0)
    frame = len(whole) - 20
    task = bound(family, max_length=frame + 8, stride=3)
    windows = task.encode_all([row])
    spans = [(w.offsets[0][0], w.offsets[-1][1]) for w in windows]
    said = [LONG[begin:end].split() for begin, end in spans]
    assert [(WORDS.index(w[0]), len(w)) for w in said] == [(0, 8), (5, 8), (10, 8), (15, 5)]
    assert {w.index for w in windows} == {0}
    for window, held in zip(windows, said, strict=True):
        alone = examples(question_row("cat", " ".join(held)))
        assert window.input_ids == task.encode(alone[0], 0).input_ids
        last = len(window) - 1
        if WORDS[9] in held:
            at = window.begin + held.index(WORDS[9])
            assert window.labels == [at, at]
        else:
            assert window.labels == [last, last]
    refused(lambda: task.encode(row, 0), "it is 4 rows; call encode_all")


def test_an_answer_over_the_edge_of_a_window_is_learned_where_it_is_whole():
    answer = " ".join(WORDS[6:10])
    (row,) = examples(question_row("cat", LONG, answer))
    windows = bound(max_length=4 + 8, stride=3).encode_all([row])
    assert [w.labels[0] == len(w) - 1 for w in windows] == [True, False, True, True]
    assert windows[1].labels == [windows[1].begin + 1, windows[1].begin + 4]


def test_the_last_window_is_never_a_part_of_the_one_before():
    for length in range(9, 20):
        (row,) = examples(question_row("cat", " ".join(WORDS[:length])))
        windows = bound(max_length=4 + 8, stride=3).encode_all([row])
        ends = [w.offsets[-1][1] for w in windows]
        assert ends == sorted(set(ends))
        assert ends[-1] == len(row.fields["context"])


def test_windows_are_merged_by_how_much_they_beat_no_answer():
    task = bound(max_length=4 + 8, stride=3)
    data = examples(question_row("cat", LONG, WORDS[9]), question_row("dog", "the dog"))
    rows = task.encode_all(data)
    assert [row.index for row in rows] == [0, 0, 0, 0, 1]
    begin = rows[0].begin
    said = [
        (begin, begin, 0.5),
        (begin + 4, begin + 5, 2.0),
        (begin, begin, -1.0),
        (begin, begin, 1.9),
    ]
    merged = task.merge_windows(rows, [*said, (begin, begin, -0.1)], data)
    assert merged == [f"{WORDS[9]} {WORDS[10]}", ""]


def test_the_stride_decides():
    (row,) = examples(question_row("cat", LONG, WORDS[9]))
    refused(
        lambda: bound(max_length=12).encode(row, 0),
        "rows#1: its context is 20 tokens long and only 8 fit",
        error=DataError,
    )
    refused(
        lambda: bound(max_length=12, stride=8).encode_all([row]),
        "cannot share 8",
        error=DataError,
    )
    refused(lambda: bound(max_length=4, stride=0).encode_all([row]), "its question of 1 tokens leaves no room", error=DataError)  # fmt: skip
    cut = bound(max_length=12, truncate=True).encode(row, 0)
    assert cut.labels == [len(cut) - 1] * 2, "its answer is cut off"
    assert cut.offsets[0] == (0, len(WORDS[0]))
    end = bound(max_length=12, truncate="start").encode(row, 0)
    assert end.offsets[-1][1] == len(LONG)


def test_a_million_characters_are_refused_at_once_or_read_in_windows():
    context = "cat dog " * 125_000
    (row,) = examples({"question": "mat", "context": context, "answers": []})
    begun = time.process_time()
    refused(
        lambda: bound().encode(row, 0),
        "its context is 250000 tokens long and only 60 fit",
        error=DataError,
    )
    assert time.process_time() - begun < 20
    assert len(bound(stride=10).encode_all([row])) == 5000
    assert len(bound(truncate=True).encode(row, 0)) == 64


# ------------------------------------------------------------------------ its arithmetic


@pytest.mark.parametrize("family", KINDS)
def test_a_padded_batch_is_its_rows_alone(family):
    base, task = with_head(family)
    rows = task.encode_all(ROWS)
    loss, count = loss_of(task, base, task.collate(rows))
    apart = [loss_of(task, base, task.collate([row]))[0] for row in rows]
    torch.testing.assert_close(loss, sum(apart), rtol=1e-4, atol=1e-4)
    assert count == 3
    loss.backward()
    assert head_of(base, "default").weight.grad.abs().sum() > 0
    together = task.predict(base, task.collate(rows))
    for row, (first, last, margin) in zip(rows, together, strict=True):
        ((a, b, c),) = task.predict(base, task.collate([row]))
        assert (first, last) == (a, b)
        assert margin == pytest.approx(c, abs=1e-3)
        assert row.begin <= first <= last < row.begin + len(row.offsets)


@torch.no_grad()
def test_the_best_span_is_the_best_of_all():
    base, task = with_head("bert", longest=3)
    batch = task.collate(task.encode_all(ROWS))
    logits = task.outputs(base, batch).scores.transpose(1, 2)
    found = task.predict(base, batch)
    for row, (first, last, margin), (begin, end, none) in zip(
        logits, found, batch.bounds.tolist(), strict=True
    ):
        spans = {
            (i, j): float(row[i, 0] + row[j, 1])
            for i in range(begin, end + 1)
            for j in range(i, min(i + 3, end + 1))
        }
        assert (first, last) == max(spans, key=spans.__getitem__)
        assert margin == pytest.approx(max(spans.values()) - float(row[none].sum()), abs=1e-4)
        closed = [i for i in range(len(row)) if not begin <= i <= end and i != none]
        assert bool((row[closed] == -torch.inf).all())


def test_members_are_heard_by_their_mean_logits():
    base = fresh("bert")
    task = bound("bert", base, max_length=12, stride=3)
    handles = []
    for name in ("one", "two"):
        handles.append(inlay.attach(base, LoRA(rank=1) + task.head(), name=name))
        for parameter in handles[-1].parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    data = examples(question_row("cat", LONG, WORDS[9]), question_row("dog", "the dog", "the"))
    voted = vote(base, handles, task, data, batch_size=2)
    rows = task.encode_all(data)
    batch, means = task.collate(rows), []
    with torch.no_grad():
        for handle, scores in zip(handles, voted.members, strict=True):
            with inlay.rows(base, [[handle.name]]):
                assert evaluate(base, task, data) == scores
                means.append(task.outputs(base, batch).scores)
        said = task.best_spans(sum(means) / 2, batch.bounds)
    assert voted.predictions == task.merge_windows(rows, said, data)
    assert voted.predictions != task.merge_windows(
        rows, task.best_spans(means[0], batch.bounds), data
    )


def test_no_span_ends_where_there_is_no_answer(monkeypatch):
    task = bound(longest=5)
    batch = task.collate([task.encode(ROWS[1], 0)])
    _, end, none = batch.bounds[0].tolist()
    scores = torch.full((1, 2, none + 1), -torch.inf)
    scores[0, :, end], scores[0, :, none] = torch.tensor([5.0, 1.0]), torch.tensor([-9.0, 7.0])
    monkeypatch.setattr(task, "outputs", lambda *_: SpanScores(scores))
    assert task.predict(model("bert"), batch) == [(end, end, 8.0)]


@torch.no_grad()
def test_the_loss_by_hand():
    base, task = with_head("bert")
    batch = task.collate(task.encode_all(ROWS[:1]))
    inputs = {name: batch.inputs[name] for name in ("input_ids", "token_type_ids")}
    states = base.bert(**inputs).last_hidden_state[0]
    head = head_of(base, "default")
    begin, end, none = batch.bounds[0].tolist()
    open_ = [*range(begin, end + 1), none]
    logits = (states @ head.weight.T + head.bias)[open_]
    labels = [open_.index(place) for place in batch.labels[0].tolist()]
    expected = sum(F.cross_entropy(logits[:, i], torch.tensor(labels[i])) for i in (0, 1)) / 2
    torch.testing.assert_close(loss_of(task, base, batch)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", KINDS)
@torch.no_grad()
def test_every_row_has_its_own_head(family):
    base = fresh(family)
    task = bound(family, base)
    add_two_heads(base, task)
    batch = task.collate(task.encode_all(ROWS))
    served = ["south", "north", "south"]
    with inlay.rows(base, served):
        mixed = task.outputs(base, batch).scores
    for number, name in enumerate(served):
        with inlay.rows(base, [name] * 3):
            alone = task.outputs(base, batch).scores
        torch.testing.assert_close(mixed[number], alone[number], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", KINDS)
def test_eight_rows_are_learned_by_heart_in_windows(family):
    torch.manual_seed(0)
    data = examples(
        *(
            question_row("cat", " ".join([*WORDS[n : n + 9], *WORDS[20:24]]), WORDS[n + 4])
            for n in range(6)
        ),
        question_row("mat", "the film was very bright"),
        question_row("dog", "nine ten old", "ten old"),
    )
    base = fresh(family)
    task = bound(family, base, max_length=14, stride=3)
    assert len(task.encode_all(data)) > len(data)
    handle = inlay.attach(base, spec_with_head(LoRA(rank=8), task))
    losses = []
    for _ in range(2):
        run = inlay.fit(base, handle, task, data, steps=60, batch_size=16, lr=2e-2, seed=1)
        losses.append(run.loss)
    assert losses[1] < losses[0]
    assert evaluate(base, task, data) == {"f1": 1, "exact_match": 1}
    said = predict(base, task, data, batch_size=3)
    assert said == [*WORDS[4:10], "", "ten old"]


def test_the_best_step_is_found_on_examples_of_several_rows():
    base, task = with_head("bert", max_length=12, stride=3)
    data = examples(question_row("cat", LONG, WORDS[9]), question_row("dog", "the dog", "the"))
    handle = next(iter(inlay.attached(base).values()))
    run = inlay.fit(base, handle, task, data, dev=data, steps=2, eval_every=1, batch_size=2)
    assert set(run.best.scores) == {"f1", "exact_match"}


# ----------------------------------------------------------------------------- scores


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Cat!", "cat"),
        ("an apple, a day", "apple day"),
        ("theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("the", ""),
        ("«Ça»", "«ça»"),
    ],
)
def test_normalised_answers(text, plain):
    assert metrics.normalised(text) == plain


@pytest.mark.parametrize(
    ("said", "gold", "exact", "f1"),
    [
        ("the cat", ["Cat."], 1, 1),
        ("cat sat", ["a cat", "dog"], 0, 2 * (1 / 2) / (1 / 2 + 1)),
        ("cat cat", ["cat cat cat"], 0, 2 * 1 * (2 / 3) / (1 + 2 / 3)),
        ("dog", ["cat"], 0, 0),
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("", ["the"], 1, 1),  # gold answers of nothing but articles do not count
        ("one two", ["three", "two one"], 0, 1),
    ],
)
def test_scores_by_hand(said, gold, exact, f1):
    found = metrics.extraction([said], [gold])
    assert found == {"exact_match": exact, "f1": pytest.approx(f1)}
    assert metrics.extraction([said, "x"], [gold, ["y"]])["f1"] == pytest.approx(f1 / 2)


# -------------------------------------------------------------------------- what it is


def test_round_trip_and_fields():
    task = Extract(stride=16, longest=5, max_length=100, metric="exact_match")
    assert from_spec(task.describe()) == task
    assert task.required_fields == ("context", "question", "answers")
    assert spec_with_head(LoRA(), task) == LoRA() + Head(labels=("start", "end"), pool="each")
    refused(lambda: Extract(stride=8, truncate=True), "exclude each other")
    refused(lambda: Extract(stride=-1), "must not be below 0")
    refused(lambda: Extract(longest=0), "leaves no answers")


def answer(text, start):
    return {"question": "q", "context": "the cat sat", "answers": [{"text": text, "start": start}]}


@pytest.mark.parametrize(
    ("fields", "needles"),
    [
        (answer("cat", 5), ["the answer 'cat' is not in its context at character 5; its first place is 4"]),
        (answer("dog", 4), ["'dog' is not in its context at character 4; it is nowhere"]),
        (answer("sat", -3), ["at character -3; its first place is 8"]),
        (answer("", 0), ["the text of an answer is empty"]),
        (answer(None, 0), ["an answer is", "not {'text': None"]),
        (answer("cat", True), ["an answer is"]),
        (answer("cat", 4) | {"answers": ["cat"]}, ["an answer is", "not 'cat'"]),
        (answer("cat", 4) | {"answers": "cat"}, ["'answers' is a text, not a list"]),
        (answer("cat", 4) | {"question": " "}, ["its question is empty"]),
        (answer("cat", 4) | {"context": ""}, ["its context is empty"]),
        ({"question": "q", "answers": []}, ["there is no field 'context'"]),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(fields, needles):
    (row,) = examples(fields)
    refused(lambda: bound().encode(row, 0), "rows#1: ", *needles, error=DataError)


def test_rows_without_answers_can_be_answered_and_not_learned():
    base, task = with_head("bert")
    (row,) = task.encode_all(examples({"question": "q", "context": "the cat"}))
    batch = task.collate([row])
    refused(lambda: loss_of(task, base, batch), "to learn from", error=DataError)
    assert task.predict(base, batch)


def test_answers_come_out_of_files(tmp_path):
    from pyarrow import Table, parquet

    row = question_row("cat", "the cat 🐈 sat", "sat")
    parquet.write_table(Table.from_pylist([row]), tmp_path / "rows.parquet")
    (read,) = load(tmp_path / "rows.parquet", need=Extract().required_fields)
    assert read.fields == row
    made = bound().encode(read, 0)
    assert made.labels[0] == made.labels[1] != len(made) - 1
