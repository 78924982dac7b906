"""The tag task: words and their tokens, spans, semantic roles, a head on every position."""

import time

import pytest
import torch
from torch.nn import functional as F

import inlay
from inlay import Head, LoRA, Prompt
from inlay.data.loading import load
from inlay.errors import DataError, RowsError
from inlay.runtime.trained_heads import head_inputs, head_of, token_states
from inlay.tasks import Classify, Tag, TrainedHead, from_spec, metrics, spans
from inlay.tasks.sentence import NO_TOKEN
from inlay.training import evaluate
from inlay.training.recipes.ensemble import vote
from inlay.training.recipes.run import spec_with_head
from tests.tasks.tiny import KINDS, add_head, add_two_heads, bind, examples, loss_of, refused, words
from tests.zoo import fresh

LABELS = ("O", "B-a", "I-a")
ROWS = examples(
    {"tokens": ["the", "cat", "sat"], "tags": ["O", "B-a", "I-a"]},
    {"tokens": ["dull"], "tags": ["O"]},
    {"tokens": ["a", "zzz", "dog", "on", "mat"], "tags": ["O", "B-a", "I-a", "O", "B-a"]},
)


def bound(family="bert", base=None, **fields):
    return bind(Tag(**{"labels": LABELS, **fields}), family, base)


def with_head(family, spec=None, **fields):
    base = fresh(family)
    task = bound(family, base, **fields)
    add_head(base, task, spec)
    return base, task


# ----------------------------------------------------------------------- words and tokens


@pytest.mark.parametrize("family", KINDS)
def test_a_word_stands_at_its_first_token(family):
    row = bound(family).encode(ROWS[2], 4)
    read = words(family)
    assert row.input_ids == read("a zzz dog on mat").input_ids
    said = read.convert_ids_to_tokens(row.input_ids)
    assert [said[place] for place in row.words] == ["a", "z", "dog", "on", "mat"]
    assert row.labels == [0, 1, 2, 0, 1]
    assert (row.index, row.where, len(row)) == (4, "rows#3", len(row.input_ids))


def test_words_without_a_token_are_not_learned_and_said_to_be_outside():
    base, task = with_head("bert")
    tokens = ["", "cat", " ", "dog", ""]
    row = task.encode(examples({"tokens": tokens, "tags": ["B-a"] * 5})[0], 0)
    assert [place == NO_TOKEN for place in row.words] == [True, False, True, False, True]
    batch = task.collate([row])
    assert loss_of(task, base, batch)[1] == 2
    (said,) = task.predict(base, batch)
    assert len(said) == 5
    assert said[0] == said[2] == said[4] == "O"


@pytest.mark.parametrize(("side", "kept"), [(True, [0, 1, 2]), ("start", [2, 3, 4])])
def test_what_truncation_cuts_off_is_outside(side, kept):
    plenty = examples({"tokens": ["cat", "dog", "mat", "film", "plot"], "tags": ["B-a"] * 5})[0]
    refused(
        lambda: bound(max_length=5).encode(plenty, 0),
        "rows#1: its 5 words are 7 tokens long and only 5 fit",
        error=DataError,
    )
    base, task = with_head("bert", truncate=side, max_length=5)
    row = task.encode(plenty, 0)
    assert len(row) == 5
    assert [place for place, at in enumerate(row.words) if at != NO_TOKEN] == kept
    texts = " ".join(plenty.fields["tokens"][place] for place in kept)
    assert row.input_ids == words("bert")(texts).input_ids
    with torch.no_grad():  # every word with a token is said to be the last label
        head_of(base, "default").bias.copy_(torch.tensor([0.0, 0.0, 1e4]))
    (said,) = task.predict(base, task.collate([row]))
    assert [place for place, tag in enumerate(said) if tag == "I-a"] == kept


def test_offsets_that_count_a_space_in_are_the_word_s_own():
    from inlay.tasks.sentence import first_tokens

    # "ab", " cd", " ", two tokens of one emoji, " e"
    offsets = [(0, 2), (2, 5), (5, 6), (6, 7), (6, 7), (7, 9)]
    assert first_tokens(offsets, [(0, 2), (3, 5), (6, 7), (8, 9)], 1) == (1, 2, 4, 6)
    assert first_tokens([(0, 5)], [(0, 2), (3, 5)], 0) == (0, 0)  # one token of two words
    assert first_tokens([(0, 2), (2, 7)], [(0, 2), (3, 3), (4, 7)], 0) == (
        0,
        NO_TOKEN,
        1,
    )  # "ab", "  cd"


def test_emoji_and_right_to_left_words_keep_their_places():
    tokens = ["cat", "👩‍👩‍👧", "שלום", "dog"]
    row = bound().encode(examples({"tokens": tokens, "tags": ["O"] * 4})[0], 0)
    said = words("bert").convert_ids_to_tokens(row.input_ids)
    assert said[row.words[0]] == "cat"
    assert said[row.words[3]] == "dog"
    assert said[row.words[1]] == said[row.words[2]] == "<unk>"
    assert sorted(set(row.words)) == list(row.words)


@pytest.mark.parametrize("family", KINDS)
def test_a_predicate_stands_in_front_and_is_framed(family):
    read = words(family)
    task = bound(family, labels=("O", "V", "A"), scheme="plain")
    tokens = ["the", "cat", "sat", "on"]
    (example,) = examples({"tokens": tokens, "tags": ["A", "O", "V", "O"], "predicate": 2})
    row = task.encode(example, 0)
    assert row.input_ids == read("sat : the cat [ sat ] on").input_ids
    said = read.convert_ids_to_tokens(row.input_ids)
    assert [said[place] for place in row.words] == tokens
    assert row.words[2] != said.index("sat"), "the one in the sentence"
    shorter = bound(family, labels=("O", "V", "A"), scheme="plain", truncate="start", max_length=9)
    cut = shorter.encode(example, 0)
    assert len(cut) == 9
    ahead = said.index("sat") + 2
    assert cut.input_ids[:ahead] == row.input_ids[:ahead], "what is in front stays"


# --------------------------------------------------------------------------------- spans


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-a I-a O B-a", {("a", 0, 1), ("a", 3, 3)}),  # IOB2
        ("I-a I-a O I-b", {("a", 0, 1), ("b", 3, 3)}),  # IOB1: I begins
        ("I-a B-a I-a", {("a", 0, 0), ("a", 1, 2)}),  # IOB1: B parts neighbours
        ("I-a I-b I-b", {("a", 0, 0), ("b", 1, 2)}),  # another type begins
        ("B-a I-b", {("a", 0, 0), ("b", 1, 1)}),
        ("S-a B-b I-b E-b S-a", {("a", 0, 0), ("b", 1, 3), ("a", 4, 4)}),  # BIOES
        ("B-a E-a I-a", {("a", 0, 1), ("a", 2, 2)}),  # nothing goes on behind an E
        ("S-a I-a", {("a", 0, 0), ("a", 1, 1)}),
        ("E-a E-a", {("a", 0, 0), ("a", 1, 1)}),  # IOE: an E by itself
        ("O E-a", {("a", 1, 1)}),
        ("U-a B-b I-b L-b", {("a", 0, 0), ("b", 1, 3)}),  # BILOU
        ("B-a M-a E-a", {("a", 0, 2)}),  # BMES
        ("B I O I", {("", 0, 1), ("", 3, 3)}),  # no types
        ("B-a-b I-a-b", {("a-b", 0, 1)}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_spans_of_every_scheme(tags, found):
    assert spans.spans(tags.split()) == found


def test_scores_by_hand():
    gold = [["B-a", "I-a", "O", "B-b"], ["B-b", "O"]]
    said = [["B-a", "I-a", "O", "B-a"], ["B-b", "B-a"]]
    found = metrics.tagging(said, gold)  # 2 of the 4 said are right, of 3 there
    assert found == pytest.approx(
        {"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "accuracy": 4 / 6}
    )
    nothing = metrics.tagging([["O", "O"]], [["B-a", "O"]])
    assert nothing == {"precision": 0, "recall": 0, "f1": 0, "accuracy": 0.5}
    ends = metrics.tagging([["B-a", "O"]], [["B-a", "I-a"]])
    assert ends["f1"] == 0, "a span cut short is wrong"
    with pytest.raises(DataError, match="1 predicted tags for 2 words"):
        metrics.tagging([["O"]], [["O", "O"]])


def test_plain_scores_by_hand():
    gold, said = [["A0", "O", "V", "A1"]], [["A0", "A1", "V", "A0"]]
    found = metrics.tagging(said, gold, plain=True)
    assert found == pytest.approx(
        {"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "accuracy": 2 / 4}
    )
    task = Tag(scheme="plain", labels=("A0", "A1", "O", "V"))
    assert task.score(said, examples({"tokens": list("abcd"), "tags": gold[0]})) == found


# ------------------------------------------------------------------------- its arithmetic


@pytest.mark.parametrize("family", KINDS)
def test_a_padded_batch_is_its_rows_alone(family):
    base, task = with_head(family)
    rows = task.encode_all(ROWS)
    loss, count = loss_of(task, base, task.collate(rows))
    apart = [loss_of(task, base, task.collate([row])) for row in rows]
    torch.testing.assert_close(loss, sum(one for one, _ in apart), rtol=1e-4, atol=1e-4)
    assert count == sum(n for _, n in apart) == 9
    loss.backward()
    assert head_of(base, "default").weight.grad.abs().sum() > 0
    together = task.predict(base, task.collate(rows))
    assert together == [task.predict(base, task.collate([row]))[0] for row in rows]
    assert [len(tags) for tags in together] == [3, 1, 5]


@torch.no_grad()
def test_logits_are_those_of_the_states_by_hand():
    base, task = with_head("bert", LoRA(rank=1))
    row = task.encode(ROWS[0], 0)
    batch = task.collate([row])
    states = base.bert(input_ids=batch.inputs["input_ids"]).last_hidden_state[0]
    head = head_of(base, "default")
    logits = states @ head.weight.T + head.bias
    logits = logits[[1, 2, 3]]
    torch.testing.assert_close(task.outputs(base, batch).scores, logits, rtol=1e-4, atol=1e-4)
    expected = F.cross_entropy(logits, torch.tensor([0, 1, 2]), reduction="sum")
    torch.testing.assert_close(loss_of(task, base, batch)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", KINDS)
@torch.no_grad()
def test_prompts_in_front_do_not_move_the_words(family):
    """What a prompt adds to the states is cut out, wherever the model keeps it."""
    base, task = with_head(family, Prompt(length=3))
    batch = task.collate(task.encode_all(ROWS))
    mask = batch.inputs["attention_mask"]
    chart = task.chart(base)
    states = token_states(base, chart, input_ids=batch.inputs["input_ids"], attention_mask=mask)
    assert states.shape[:2] == mask.shape
    kept, wide = head_inputs(base, chart, input_ids=batch.inputs["input_ids"], attention_mask=mask)
    extra = 3 if family == "t5" else 0  # its encoder keeps the prompt for the decoder
    assert kept.shape[1] == mask.shape[1] + extra
    for row, seen, own, text in zip(kept, wide.bool(), states, mask.bool(), strict=True):
        torch.testing.assert_close(own[text], row[seen][extra:])
    # and a word's logits are the same beside longer neighbours as alone
    alone = task.outputs(base, task.collate(task.encode_all(ROWS[:1]))).scores
    scores = task.outputs(base, batch).scores
    torch.testing.assert_close(scores[: len(alone)], alone, rtol=1e-4, atol=1e-4)


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
    owners = (batch.words >= 0).nonzero()[:, 0]
    for number, name in enumerate(served):
        with inlay.rows(base, [name] * 3):
            alone = task.outputs(base, batch).scores
        own = owners == number
        torch.testing.assert_close(mixed[own], alone[own], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(mixed[owners == 0][0], mixed[owners == 1][0])


def test_members_vote_on_every_word():
    base = fresh("bert")
    task = bound("bert", base)
    handles = []
    for name in ("one", "two", "three"):
        handles.append(inlay.attach(base, LoRA(rank=1) + task.head(), name=name))
        for parameter in handles[-1].parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    voted = vote(base, handles, task, ROWS, batch_size=2)
    for handle, scores in zip(handles, voted.members, strict=True):
        with inlay.rows(base, [[handle.name]]):
            assert evaluate(base, task, ROWS) == scores
    each = []
    for handle in handles:
        with inlay.rows(base, [[handle.name]]), torch.no_grad():
            each.append(task.predict(base, task.collate(task.encode_all(ROWS))))
    for number, tags in enumerate(voted.predictions):
        for place, tag in enumerate(tags):
            asked = [one[number][place] for one in each]
            assert asked.count(tag) == max(map(asked.count, asked))


def test_heads_that_pool_do_not_mix_with_heads_that_do_not():
    base = fresh("bert")
    task = bound("bert", base)
    inlay.attach(base, task.head(), name="each")
    inlay.attach(base, Head(labels=LABELS), name="mean")
    batch = task.collate(task.encode_all(ROWS[:2]))
    with inlay.rows(base, ["each", "mean"]), pytest.raises(RowsError, match="classify each token"):
        task.outputs(base, batch)


def test_a_head_that_pools_is_refused():
    base = fresh("bert")
    task = bound("bert", base)
    inlay.attach(base, Head(labels=LABELS, pool="mean"))
    batch = task.collate(task.encode_all(ROWS))
    refused(
        lambda: loss_of(task, base, batch),
        "add Head(labels=('O', 'B-a', 'I-a'), pool='each') to it; its heads: [",
    )
    each = fresh("bert")
    one = Classify(by=TrainedHead(LABELS))
    one.bind(each, words("bert"))
    inlay.attach(each, task.head())
    text = examples({"text": "a", "label": "O"})
    refused(
        lambda: one.outputs(each, one.collate(one.encode_all(text))).scores, "no attached inlay has"
    )


@pytest.mark.parametrize("family", KINDS)
def test_eight_rows_are_learned_by_heart(family):
    torch.manual_seed(0)
    names = ["cat", "dog", "mat", "film"]
    data = examples(
        *(
            {
                "tokens": ["the", name, "new" if number % 2 else "old", "was", "zq", "bad"],
                "tags": ["O", "B-a", "I-a" if number % 2 else "O", "O", "B-b", "O"],
            }
            for number, name in enumerate(names * 2)
        )
    )
    base = fresh(family)
    task = Tag()
    task.prepare(data)
    assert task.labels == ("B-a", "B-b", "I-a", "O")
    task.bind(base, words(family))
    handle = inlay.attach(base, spec_with_head(LoRA(rank=4), task))
    losses = []
    for _ in range(2):
        run = inlay.fit(base, handle, task, data, steps=40, batch_size=8, lr=3e-2, seed=1)
        losses.append(run.loss)
    assert losses[1] < losses[0] < 1
    assert evaluate(base, task, data) == {"f1": 1, "precision": 1, "recall": 1, "accuracy": 1}


# ----------------------------------------------------------------------------- what it is


def test_tags_come_from_the_training_data_sorted():
    task = Tag()
    refused(task.head, "the tags are not known yet")
    task.prepare(ROWS)
    assert task.labels == ("B-a", "I-a", "O")
    assert from_spec(task.describe()) == task
    task.prepare(examples({"tokens": ["a"], "tags": ["B-x"]}))
    assert task.labels == ("B-a", "I-a", "O")
    assert task.required_fields == ("tokens", "tags")


def test_the_head_that_is_added_is_the_one_that_is_read():
    task = Tag(labels=LABELS)
    assert spec_with_head(LoRA(), task) == LoRA() + Head(labels=LABELS, pool="each")
    own = LoRA() + Head(labels=LABELS, pool="each")
    assert spec_with_head(own, task) is own
    fresh_task = Tag()
    fresh_task.set_labels(("O", "B-a"))
    assert fresh_task.labels == ("O", "B-a")
    fresh_task.set_labels(Head(labels=("x", "y"), pool="each"))
    assert fresh_task.labels == ("O", "B-a"), "what is known stays"


def test_label_sets_that_make_no_sense():
    refused(lambda: Tag(labels=[]), "there are no labels")
    refused(lambda: Tag(labels=["O", "O"]), "label 'O' is given twice")
    refused(lambda: Tag(labels=["O", "ARG1"]), "'ARG1' is neither 'O' nor", "scheme='plain'")
    refused(lambda: Tag(labels=["B-"]), "'B-' is neither")
    refused(lambda: Tag(metric="exact_match"), "metric='exact_match' is impossible")
    refused(lambda: Tag(scheme="iob"), "scheme='iob' is impossible")
    assert Tag(labels=["O", "ARG1"], scheme="plain").labels == ("O", "ARG1")


@pytest.mark.parametrize(
    ("fields", "needles"),
    [
        ({"tokens": ["a", "cat"], "tags": ["O"]}, ["2 tokens and 1 tags"]),
        ({"tokens": ["a"], "tags": ["B-A"]}, ["there is no tag 'B-A'; did you mean 'B-a'?"]),
        ({"tokens": [], "tags": []}, ["its list of tokens is empty"]),
        ({"tokens": ["", " "], "tags": ["O", "O"]}, ["all of its tokens are empty"]),
        ({"tokens": "a cat", "tags": ["O"]}, ["'tokens' is a text, not a list", "separator"]),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, ["tokens is a list of texts, and item 2 is a number"]),
        ({"tokens": ["a"], "tags": [3]}, ["tags is a list of texts, and item 1 is a number"]),
        ({"tags": ["O"]}, ["there is no field 'tokens'"]),
        ({"tokens": ["a", "cat"], "predicate": 2}, ["predicate=2 is none of its 2 tokens", "0 to 1"]),
        ({"tokens": ["a", "cat"], "predicate": -1}, ["predicate=-1 is none of its 2 tokens"]),
        ({"tokens": ["a"], "predicate": "cat"}, ["predicate is the number of a word", "'cat'"]),
        ({"tokens": ["a"], "predicate": True}, ["not True"]),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(fields, needles):
    (row,) = examples(fields)
    refused(lambda: bound().encode(row, 0), "rows#1: ", *needles, error=DataError)


def test_a_predicate_without_room_for_its_sentence():
    task = bound(labels=("O", "V"), scheme="plain", truncate=True, max_length=4)
    (row,) = examples({"tokens": ["the", "cat"], "predicate": 1})
    refused(lambda: task.encode(row, 0), "even without its sentence", "4 fit", error=DataError)


def test_a_million_characters_are_refused_at_once():
    (row,) = examples({"tokens": ["cat"] * 250_000, "tags": ["O"] * 250_000})
    begun = time.process_time()
    refused(lambda: bound().encode(row, 0), "250002 tokens long and only 64 fit", error=DataError)
    assert time.process_time() - begun < 20


def test_rows_without_tags_can_be_tagged_and_not_learned():
    base, task = with_head("bert")
    rows = task.encode_all(examples({"tokens": ["a", "cat"]}, {"tokens": ["a"], "tags": ["O"]}))
    refused(lambda: task.collate(rows), "rows#1: it has no label", error=DataError)
    batch = task.collate(rows[:1])
    refused(lambda: loss_of(task, base, batch), "to learn from", error=DataError)
    assert len(task.predict(base, batch)[0]) == 2


def test_lists_come_out_of_files(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("tokens,tags\na cat,O O\n")
    rows = load(path, need=Tag().required_fields)
    refused(lambda: bound().encode_all(rows), "rows.csv:2", "separator='|'", error=DataError)  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"tokens": ["a", "cat"], "tags": ["O", "B-a"]}\n{"tokens": ["a"], "tags": []}\n'
    )
    rows = load(path, need=Tag().required_fields)
    assert bound().encode(rows[0], 0).labels == [0, 1]
    refused(lambda: bound().encode_all(rows), "rows.jsonl:2: 1 tokens and 0 tags", error=DataError)
