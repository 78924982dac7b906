"""Chats as rows: what the assistant wrote is learned, and nothing else."""

import pytest
import torch

from inlay.data.loading import load
from inlay.errors import DataError
from inlay.tasks import Generate, from_spec
from inlay.tasks.chat import tokens_within
from tests.tasks.tiny import examples, loss_of, refused, tokenizer
from tests.zoo import model

MARKED = (
    "{% for m in messages %}{{ m['role'][0] }} : {% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }} </s> {% endgeneration %}"
    "{% else %}{{ m['content'] }} </s> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a : {% endif %}"
)
PLAIN = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
TEMPLATES = pytest.mark.parametrize("template", [MARKED, PLAIN], ids=["marked", "plain"])


def chat_row(*texts, system=None):
    """A chat in which the user begins."""
    before = [] if system is None else [{"role": "system", "content": system}]
    turns = [
        {"role": ("user", "assistant")[number % 2], "content": text}
        for number, text in enumerate(texts)
    ]
    return {"messages": [*before, *turns]}


def bound(template=PLAIN, family="llama", **fields):
    task = Generate(chat="messages", **fields)
    task.bind(model(family), tokenizer("decoder", bos=True, chat=template))
    return task


def learned(task, row):
    """The tokens that the loss of a row is about, and those that each is predicted behind."""
    batch = task.collate([row])
    ids, read = batch.inputs["input_ids"][0], task.bound.tokenizer
    behind = [read.decode(ids[: place + 1]) for place in batch.positions.tolist()]
    return read.convert_ids_to_tokens(batch.targets.tolist()), behind


@TEMPLATES
def test_all_turns_of_the_assistant_are_learned_and_nothing_else(template):
    (row,) = examples(chat_row("the cat", "sat on", "red", "a mat", system="a good dog"))
    task = bound(template)
    found = task.encode(row, 4)
    tokens, behind = learned(task, found)
    assert tokens == ["sat", "on", "</s>", "a", "mat", "</s>"]
    assert behind[0].split()[-2] == behind[3].split()[-2] == "a", "the assistant's turn begins"
    assert behind[1].endswith("sat") and behind[5].endswith("a mat")
    whole = task.bound.tokenizer(
        "s : a good dog </s> u : the cat </s> a : sat on </s> u : red </s> a : a mat </s>",
        add_special_tokens=False,
    )["input_ids"]
    assert [*found.input_ids, *found.labels] == whole
    assert (found.index, found.where, len(found)) == (4, "rows#1", len(whole))


@TEMPLATES
@torch.no_grad()
def test_the_loss_of_a_batch_is_the_models_own_on_those_tokens(template):
    rows = examples(
        chat_row("the cat", "sat on", "red", "a mat"),
        chat_row("dog", "bad"),
        chat_row("a", "b", "c", "good"),
    )
    task, base = bound(template), model("llama")
    encoded = task.encode_all(rows)
    expected, count = 0.0, 0
    for row in encoded:
        ids = torch.tensor([row.input_ids + row.labels])
        labels = torch.full_like(ids, -100)
        for place in (*row.earlier_turns, *range(len(row.input_ids), ids.shape[1])):
            labels[0, place] = ids[0, place]
        number = int((labels != -100).sum())
        expected, count = (
            expected + base(input_ids=ids, labels=labels).loss * number,
            count + number,
        )
    loss, found = loss_of(task, base, task.collate(encoded))
    assert found == count == (3 + 3) + 2 + (2 + 2)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)


@TEMPLATES
def test_the_last_turn_is_the_target_and_is_generated(template):
    rows = examples(
        chat_row("the cat", "sat on", "red", "a mat"), chat_row("the cat", "sat on", "red")
    )
    task = bound(template, generation={"max_new_tokens": 3})
    first, second = (task.encode(row, 0) for row in rows)
    assert first.input_ids == second.input_ids, "the same prompt, with and without its answer"
    assert second.labels is None
    with_answer, without = (
        task.predict(model("llama"), task.collate([r])) for r in (first, second)
    )
    assert with_answer == without
    assert task.score(["a mat"], rows[:1])["exact_match"] == 1
    refused(lambda: task.score(["a"], rows[1:]), "rows#2: its last message", error=DataError)


def test_a_system_message_stands_in_front_unless_a_chat_brings_its_own():
    own, other = examples(chat_row("red", "blue", system="old"), chat_row("red", "blue"))
    task = bound(system="new")
    read = task.bound.tokenizer
    for row, name in ((own, "old"), (other, "new")):
        assert read.decode(task.encode(row, 0).input_ids[:3]).split()[-1] == name


def test_white_space_behind_the_end_of_a_turn_is_the_templates():
    trimmed = PLAIN.replace("{{ m['content'] }} </s> ", "{{ m['content'] | trim }}</s>\n\n")
    task = bound(trimmed)
    (row,) = examples(chat_row("the cat", "  sat on ", "red", " a mat"))
    assert learned(task, task.encode(row, 0))[0] == ["sat", "on", "</s>", "a", "mat", "</s>"]


def test_another_token_may_end_a_turn():
    template = PLAIN.replace("</s>", "<mask>")
    (row,) = examples(chat_row("the cat", "sat"))
    message = "is none of the tokens that end generation (</s>)"
    refused(lambda: bound(template).encode(row, 0), "rows#1", message, error=DataError)
    task = bound(template, generation={"eos_token_id": [2, 4]})
    assert learned(task, task.encode(row, 0))[0] == ["sat", "<mask>"]


def test_templates_that_rewrite_what_came_before():
    """Some drop what the assistant thought once others answer; the marks still find it."""
    changing = PLAIN.replace(
        "{{ m['content'] }} </s> {% endif %}",
        "{{ m['content'] }} {{ loop.length }} </s> {% endif %}",
    ).replace("{{ m['role'][0] }} :", "{{ loop.length }} {{ m['role'][0] }} :")
    (row,) = examples(chat_row("the cat", "sat on", "red", "a mat"))
    refused(
        lambda: bound(changing).encode(row, 0),
        "rows#1: the chat template writes message 2 differently",
        "{% generation %}",
        error=DataError,
    )
    elsewhere = PLAIN.replace("a : {% endif %}", "{% endif %}")
    refused(
        lambda: bound(elsewhere).encode(row, 0),
        "rows#1: the chat template does not write the assistant's text, 'sat on'",
        error=DataError,
    )
    marked = MARKED.replace("{{ m['role'][0] }} :", "{{ loop.length }} {{ m['role'][0] }} :")
    task = bound(marked)
    tokens, _ = learned(task, task.encode(row, 0))
    assert tokens == ["sat", "on", "</s>", "a", "mat", "</s>"]


def test_a_token_over_the_edge_of_a_turn_is_not_learned():
    offsets = [(0, 2), (2, 4), (3, 5), (5, 7), (7, 7), (7, 9), (8, 10)]
    assert tokens_within(offsets, [(3, 7), (8, 10)]) == (2, 3, 6)


MESSAGES = {
    "empty": ([], "its list of messages is empty"),
    "no list": ("red", "field 'messages' is a text, not a list"),
    "no object": (["red"], "message 1 is a text, not an object"),
    "no role": ([{"content": "red"}], "message 1 has no text as its role"),
    "no content": ([{"role": "user", "content": 3}], "message 1 has no text as its content"),
}


@pytest.mark.parametrize(("messages", "needle"), MESSAGES.values(), ids=MESSAGES)
def test_messages_that_cannot_be_used(messages, needle):
    (row,) = examples({"messages": messages})
    refused(lambda: bound().encode(row, 0), "rows#1", needle, error=DataError)


def test_chats_that_cannot_be_used():
    strict = PLAIN + "{{ raise_exception('no') if messages[0]['content'] == 'red' }}"
    (row,) = examples(chat_row("red", "blue"))
    refused(
        lambda: bound(strict).encode(row, 0),
        "rows#1: the chat template refuses its messages: no",
        error=DataError,
    )
    (long,) = examples(chat_row("one " * 60, "two"))
    refused(lambda: bound().encode(long, 0), "rows#1: its messages are 67", "64", error=DataError)
    refused(lambda: bound(None), "needs a tokenizer with a chat template")
    for option in ({"template": "{a}"}, {"target": "a"}, {"demonstrations": 2}, {"truncate": True}):
        refused(lambda bad=option: Generate(chat="messages", **bad), "is for rows of texts")
    refused(lambda: Generate(chat="message"), "chat='message' is impossible")
    refused(
        lambda: Generate(chat="messages").place_virtual_tokens(2, 1, []),
        "no template for 2 virtual tokens",
    )


def test_chats_come_out_of_files(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "red"}, '
        '{"role": "assistant", "content": "blue", "name": null}], "extra": {"a": 1}}\n'
    )
    task = bound()
    (row,) = load(path, need=task.required_fields)
    assert learned(task, task.encode(row, 0))[0] == ["blue", "</s>"]
    assert from_spec(task.describe()) == task
