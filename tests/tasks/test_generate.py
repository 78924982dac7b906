"""The generate task, on a decoder and an encoder–decoder."""

import copy

import pytest
import torch

from inlay.errors import DataError
from inlay.tasks import Generate, from_spec
from tests.tasks.tiny import CHAT, examples, loss_of, refused, tokenizer
from tests.zoo import fresh, model

DECODERS = ["llama", "gpt2", "opt", "gemma2"]
SEQ2SEQ = ["t5", "bart"]
ROWS = examples(
    {"source": "the cat sat on", "target": "a mat"},
    {"source": "red", "target": "one two three four"},
    {"source": "very old film was", "target": "dull"},
)


def words(family):
    return tokenizer("encoder-decoder" if family in ("t5", "mt5") else "decoder", bos=True)


def bound(family, read=None, **fields):
    task = Generate(**fields)
    task.bind(model(family), words(family) if read is None else read)
    return task


# ------------------------------------------------------------------------------------- loss


def own_loss(base, family, task, row):
    """The loss of a row as the model itself computes it, summed."""
    if family in SEQ2SEQ:
        labels = torch.tensor([row.labels])
        return base(input_ids=torch.tensor([row.input_ids]), labels=labels).loss * len(row.labels)
    ids = torch.tensor([row.input_ids + row.labels])
    labels = ids.clone()
    labels[:, : len(row.input_ids)] = -100
    return base(input_ids=ids, labels=labels).loss * len(row.labels)


@pytest.mark.parametrize("family", [*DECODERS, *SEQ2SEQ])
@torch.no_grad()
def test_a_padded_batch_has_the_models_own_loss(family):
    base, task = model(family), bound(family)
    rows = task.encode_all(ROWS)
    expected = sum(own_loss(base, family, task, row) for row in rows)
    loss, count = loss_of(task, base, task.collate(rows))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    assert count == sum(len(row.labels) for row in rows)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_gradients_are_the_models_own(family):
    base = fresh(family)
    task = bound(family)
    rows = task.encode_all(ROWS)
    name, weight = next((n, p) for n, p in base.named_parameters() if "q" in n.split(".")[-2])
    (expected,) = torch.autograd.grad(
        sum(own_loss(base, family, task, row) for row in rows), weight
    )
    base.requires_grad_(False)
    weight.requires_grad_()
    (found,) = torch.autograd.grad(loss_of(task, base, task.collate(rows))[0], weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_a_row_is_source_then_target_then_end():
    read = words("llama")
    row = bound("llama", read).encode(ROWS[0], 7)
    assert row.input_ids == read("the cat sat on").input_ids
    assert row.labels == [*read("a mat", add_special_tokens=False).input_ids, read.eos_token_id]
    assert (row.index, row.where, len(row)) == (7, "rows#1", 5 + 3)


def test_the_end_is_learned_where_it_is_also_the_padding():
    read = tokenizer("decoder", pad="</s>")
    task = bound("llama", read)
    batch = task.collate(task.encode_all(ROWS))
    assert (batch.targets == read.eos_token_id).sum() == len(ROWS)
    assert batch.inputs["attention_mask"].sum(1).tolist() == [4 + 2, 1 + 4, 4 + 1]


def test_only_labelled_positions_meet_the_head():
    base = fresh("llama")
    task = bound("llama")
    seen = []
    base.lm_head.register_forward_hook(lambda *args: seen.append(args[2].shape[0]))
    with torch.no_grad():
        _, count = loss_of(task, base, task.collate(task.encode_all(ROWS)))
    assert seen == [count]


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("together", [1000, 2])
def test_encode_all_is_encode(family, together, monkeypatch):
    monkeypatch.setattr("inlay.tasks.base.ENCODED_TOGETHER", together)
    task, told = bound(family), []
    one_by_one = [task.encode(row, number) for number, row in enumerate(ROWS)]
    assert task.encode_all(ROWS, told.append) == one_by_one
    assert sum(told) == len(ROWS) and max(told) <= together


def test_a_tokenizer_that_ends_texts_by_itself_does_not_end_the_source():
    read = tokenizer("encoder")  # <s> … </s>
    row = bound("llama", read).encode(ROWS[1], 0)
    assert row.input_ids == [read.bos_token_id, *read("red", add_special_tokens=False).input_ids]
    assert row.labels[-2:] == [read("four", add_special_tokens=False).input_ids[0], 2]


# ------------------------------------------------------------------- templates and chat


def test_template_and_its_default():
    fields = examples({"name": "cat", "place": "mat", "target": "yes"})[0]
    read = words("llama")
    task = bound("llama", read, template="the {name} on a {place}")
    assert task.encode(fields, 0).input_ids == read("the cat on a mat").input_ids
    assert task.required_fields == ("name", "place", "target")
    assert Generate().required_fields == ("source", "target")
    lines = []

    class Recorder:
        def __call__(self, texts, **_):
            lines.extend(texts)
            return {"input_ids": [[5]] * len(texts)}

    for family, expected in {"llama": "red\n", "t5": "red"}.items():
        task = bound(family)
        object.__setattr__(task._reader, "tokenizer", Recorder())
        task._reader.read(examples({"source": "red"}), [None])
        assert lines.pop() == expected


def test_chat():
    read = tokenizer("decoder", bos=True, chat=CHAT)
    row = bound("llama", read, chat=True, system="a good dog").encode(ROWS[0], 0)
    asked = "system : a good dog </s> user : the cat sat on </s> good :"
    assert row.input_ids == read(asked, add_special_tokens=False).input_ids
    assert row.labels[-1] == read.eos_token_id
    row = bound("llama", read, chat=True, template="was {source}").encode(ROWS[1], 0)
    asked = "user : was red </s> good :"
    assert row.input_ids == read(asked, add_special_tokens=False).input_ids


def test_chat_that_is_impossible():
    refused(lambda: bound("llama", chat=True), "chat needs a tokenizer with a chat template")
    refused(lambda: bound("t5", chat=True), "chat is for decoders")
    refused(lambda: Generate(system="a"), "a system message needs chat, which is off")
    strict = tokenizer("decoder", chat="{{ raise_exception('no system') }}")
    refused(lambda: bound("llama", strict, chat=True), "refuses these messages: no system")


# ------------------------------------------------------------------------------ too long

LONG = examples({"source": "one two three four five six", "target": "red blue"})[0]


def test_a_row_that_is_too_long_is_refused_by_name():
    task = bound("llama", max_length=8)
    refused(lambda: task.encode(LONG, 0), "rows#1: its input is 7 tokens", "5 fit", error=DataError)
    task = bound("t5", max_length=6)
    refused(lambda: task.encode(LONG, 0), "its input is 7 tokens", "6 fit", error=DataError)
    assert bound("llama", max_length=10).encode(LONG, 0)
    many = examples({"source": "one " * 70, "target": "red"})[0]
    refused(lambda: bound("llama").encode(many, 0), "71 tokens", "62 fit", error=DataError)


@pytest.mark.parametrize(
    ("truncate", "kept"), [(True, "one two"), ("end", "one two"), ("start", "five six")]
)
def test_truncation_shortens_the_source_only(truncate, kept):
    read = words("llama")
    task = bound("llama", read, truncate=truncate, max_length=8, template="a {source} mat")
    row = task.encode(LONG, 0)
    assert row.input_ids == read(f"a {kept} mat").input_ids
    assert len(row) == 8
    assert row.labels == bound("llama", read).encode(LONG, 0).labels
    task = bound("t5", truncate=truncate, max_length=3)
    assert task.encode(LONG, 0).input_ids == words("t5")(kept).input_ids


def test_truncation_in_a_chat_keeps_the_chat():
    read = tokenizer("decoder", bos=True, chat=CHAT)
    whole = bound("llama", read, chat=True).encode(LONG, 0)
    task = bound("llama", read, chat=True, truncate=True, max_length=len(whole) - 4)
    asked = "user : one two </s> good :"
    assert task.encode(LONG, 0).input_ids == read(asked, add_special_tokens=False).input_ids


def test_truncation_shortens_the_longest_field_first():
    read = words("llama")
    row = examples({"x": "one two three four five", "y": "six seven", "target": "a"})[0]
    task = bound("llama", read, truncate=True, max_length=8, template="{x} and {y}")
    assert task.encode(row, 0).input_ids == read("one two and six seven").input_ids
    task = bound("llama", read, truncate=True, max_length=6, template="{x} and {y}")
    assert task.encode(row, 0).input_ids == read("one and six").input_ids


def test_truncation_has_its_limits():
    task = bound("llama", truncate=True, max_length=3)
    refused(lambda: task.encode(LONG, 0), "rows#1: its target alone is 3 tokens", error=DataError)
    task = bound("llama", truncate=True, max_length=6, template="a good {source} mat")
    refused(lambda: task.encode(LONG, 0), "even without its text", error=DataError)
    task = bound("t5", max_length=2, truncate=True)
    refused(lambda: task.encode(LONG, 0), "its target alone is 3 tokens long", error=DataError)


# ------------------------------------------------------------------------------ bad rows


def test_rows_that_cannot_be_used():
    task = bound("llama")
    empty, missing = examples({"source": " ", "target": "a"}, {"sauce": "a", "target": "a"})
    refused(lambda: task.encode(empty, 0), "rows#1: its text is empty", error=DataError)
    refused(
        lambda: task.encode(missing, 0),
        "rows#2: there is no field 'source'; did you mean 'sauce'?",
        error=DataError,
    )
    task = bound("llama", template="the {source}")
    assert task.encode(empty, 0).input_ids == words("llama")("the").input_ids


def test_rows_without_a_target():
    task = bound("llama")
    rows = task.encode_all(examples({"source": "red"}, {"source": "one", "target": "two"}))
    assert rows[0].labels is None
    refused(lambda: task.collate(rows), "rows#1: it has no label or target", error=DataError)
    batch = task.collate(rows[:1])
    refused(lambda: loss_of(task, model("llama"), batch), "to learn from", error=DataError)
    assert isinstance(task.predict(model("llama"), batch)[0], str)


def test_an_empty_target_is_an_end():
    row = bound("llama", empty_targets=True).encode(examples({"source": "red", "target": ""})[0], 0)
    assert row.labels == [2]


# --------------------------------------------------------------------------- prediction


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "length_penalty": 0.5}])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart"])
def test_a_batch_predicts_what_its_rows_predict(family, options):
    task = bound(family, generation={"min_new_tokens": 3, "max_new_tokens": 6, **options})
    rows = task.encode_all(ROWS)
    together = task.predict(model(family), task.collate(rows))
    assert together == [task.predict(model(family), task.collate([row]))[0] for row in rows]
    assert any(together)


@torch.no_grad()
def test_prediction_is_greedy_by_default():
    base = fresh("llama")
    base.generation_config.do_sample = True
    base.generation_config.temperature = 5.0
    base.generation_config.max_length = 9
    before = copy.deepcopy(base.generation_config.to_dict())
    read = words("llama")
    task = Generate(generation={"max_new_tokens": 12})
    task.bind(base, read)
    row = task.encode(ROWS[0], 0)
    ids = list(row.input_ids)
    for _ in range(12):
        ids.append(base(torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] == read.eos_token_id:
            break
    said = read.decode(ids[len(row.input_ids) :], skip_special_tokens=True).strip()
    assert task.predict(base, task.collate([row])) == [said]
    assert base.generation_config.to_dict() == before


def test_prediction_ends_where_the_context_is_full():
    task = bound("gpt2", generation={"max_new_tokens": 50, "min_new_tokens": 1})
    long = examples({"source": "one " * 60}, {"source": "one " * 63})
    for row, most in zip(task.encode_all(long), (3, 0), strict=True):
        (text,) = task.predict(model("gpt2"), task.collate([row]))
        assert len(text.split()) <= most


def test_the_target_in_a_batch_is_no_help():
    task = bound("llama", generation={"max_new_tokens": 5})
    base = model("llama")
    bare = examples(*({"source": row.fields["source"]} for row in ROWS))
    with_targets = task.predict(base, task.collate(task.encode_all(ROWS)))
    assert with_targets == task.predict(base, task.collate(task.encode_all(bare)))


def test_score_uses_the_targets():
    task = bound("llama")
    scores = task.score(["a mat", "one two three four", "bright"], ROWS)
    assert scores["exact_match"] == pytest.approx(2 / 3)
    assert task.metric in scores
    refused(lambda: task.score(["a"], ROWS), "1 predictions for 3 examples", error=DataError)


# ------------------------------------------------------------------------- as data, bind


def test_round_trip():
    task = Generate(template="{a}", chat=True, system="s", generation={"num_beams": 2})
    spec = task.describe()
    assert spec["task"] == "generate"
    assert from_spec(spec) == task
    assert from_spec({"task": "generate"}) == Generate()


def test_specs_that_make_no_sense():
    refused(lambda: from_spec({"task": "generat"}), "no task 'generat'; did you mean 'generate'?")
    refused(lambda: from_spec({}), "no task None")
    refused(
        lambda: from_spec({"task": "generate", "metrc": "bleu"}), "no field 'metrc'; did you mean"
    )
    refused(lambda: Generate(metric="blue"), "metric='blue' is impossible", "'bleu'")
    refused(lambda: Generate(truncate="middle"), "truncate='middle' is impossible")
    refused(lambda: Generate(max_length=0), "max_length=0")
    refused(lambda: Generate(chat="yes"), "chat='yes' is impossible")
    refused(lambda: Generate(template="no column"), "has no {column}")
    refused(lambda: Generate(generation={"num_beam": 2}), "'num_beam'", "did you mean 'num_beams'?")
    refused(lambda: Generate(generation={"num_return_sequences": 2}), "'num_return_sequences'")


def test_what_cannot_generate():
    refused(lambda: bound("bert"), "is an encoder and cannot generate")
    refused(lambda: bound("vit"), "reads images")
    bare = Generate()
    refused(lambda: bare.bind(model("llama").model, words("llama")), "language-model head")
    refused(lambda: bare.encode(ROWS[0], 0), "call bind(model, tokenizer) first")
    endless = words("llama")
    endless.eos_token = None
    refused(lambda: bound("llama", endless), "needs an end token")
    large = words("llama")
    large.add_tokens([f"new{number}" for number in range(9)])
    refused(lambda: bound("llama", large), "has 108 tokens and the model 99")
    for options in ({"early_stopping": "perhaps"}, {"temperature": 0.5}, {"length_penalty": 2.0}):
        refused(lambda bad=options: bound("llama", generation=bad), "do not fit together")
