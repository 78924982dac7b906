"""Texts of every script through offsets: a tokenizer of bytes, where a character is many tokens."""

import json
import time

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from inlay.data.loading import load
from inlay.errors import DataError
from inlay.tasks import Extract, Generate, Tag
from inlay.tasks.outputs import Scores
from inlay.tasks.sentence import NO_TOKEN
from tests.tasks.tiny import CHAT, examples, refused
from tests.training import tiny

TEXTS = {
    "hebrew": "שלום עולם",
    "arabic": "مرحبا، بالعالم",
    "marked": "\u202bשלום\u202c abc \u200fאב",  # with characters that steer the direction
    "family": "👩‍👩‍👧 👍🏽 🇦🇶",
    "accents": "e\u0301te\u0301 été",  # the same word, composed and not
    "thai": "สวัสดี ชาวโลก",
}
SCRIPTS = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


@pytest.fixture(scope="module")
def base():
    config = {**tiny.CONFIG, "vocab_size": 300, "max_position_embeddings": 256}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**config)).eval()


def reader():
    """Every byte is a token."""
    alphabet = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({one: number for number, one in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", pad_token="<pad>", chat_template=CHAT
    )


def bound(task, base):
    task.bind(base, reader())
    return task


@SCRIPTS
def test_an_answer_comes_back_as_it_stands_in_its_context(text, base):
    task = bound(Extract(), base)
    for answer in text.split():
        context = f"one {text} two {text}."
        start = context.rindex(answer)
        (row,) = examples(
            {"question": "?", "context": context, "answers": [{"text": answer, "start": start}]}
        )
        made = task.encode(row, 0)
        first, last = made.labels
        assert task.merge_windows([made], [(first, last, 1.0)], [row]) == [answer]
        assert last - first + 1 == len(answer.encode()), "a token for each of its bytes"


@SCRIPTS
def test_every_word_keeps_its_tag(text, base, monkeypatch):
    words = ["one", *text.split(), "two"]
    task = bound(Tag(labels=("O", "B-a", "I-a")), base)
    (row,) = examples({"tokens": words, "tags": ["B-a"] * len(words)})
    made, begin = task.encode(row, 0), 0
    read = task.bound.tokenizer
    assert NO_TOKEN not in made.words
    for word, place in zip(words, made.words, strict=True):
        assert read.decode(made.input_ids[:place]) == " ".join(words)[:begin]
        begin += len(word) + 1
    batch = task.collate([made])
    assert len(batch.labels) == len(words)
    scores = torch.tensor([[0.0, 1.0, 0.0]]).expand(len(words), -1)
    monkeypatch.setattr(task, "outputs", lambda model, batch: Scores(scores))
    assert task.predict(base, batch) == [["B-a"] * len(words)]


@SCRIPTS
def test_targets_and_chats_are_written_as_they_were(text, base):
    read = reader()
    row = bound(Generate(), base).encode(examples({"source": text, "target": text})[0], 0)
    assert read.decode(row.labels, skip_special_tokens=True) == text
    assert read.decode(row.input_ids) == f"{text}\n"
    turns = [("user", text), ("assistant", text), ("user", "a"), ("assistant", text)]
    (chat,) = examples({"messages": [{"role": a, "content": b} for a, b in turns]})
    long = CHAT.replace("good :", "assistant : ")
    read.chat_template = long
    task = Generate(chat="messages")
    task.bind(base, read)
    made = task.encode(chat, 0)
    assert read.decode([made.input_ids[place] for place in made.earlier_turns]) == f"{text} </s>"
    assert read.decode(made.labels) == f"{text} </s>"


# --------------------------------------------------------------- rows that cannot be used

FILES = {
    "tags": (
        Tag(labels=("O",)),
        {"tokens": ["a", "b"], "tags": ["O", "O"]},
        {"tokens": ["a", "b"], "tags": ["O"]},
        "rows.jsonl:2: 2 tokens and 1 tags",
    ),
    "answer": (
        Extract(),
        {"question": "?", "context": "a b", "answers": []},
        {"question": "?", "context": "a b", "answers": [{"text": "b", "start": 1}]},
        "rows.jsonl:2: the answer 'b' is not in its context at character 1; its first place is 2",
    ),
    "context": (
        Extract(),
        {"question": "?", "context": "a b", "answers": []},
        {"question": "?", "context": "", "answers": []},
        "rows.jsonl:2: its context is empty",
    ),
    "tokens": (
        Tag(labels=("O",)),
        {"tokens": ["a"], "tags": ["O"]},
        {"tokens": [""], "tags": ["O"]},
        "rows.jsonl:2: all of its tokens are empty",
    ),
    "source": (
        Generate(),
        {"source": "a", "target": "b"},
        {"source": "", "target": "b"},
        "rows.jsonl:2: its text is empty",
    ),
    "chat": (
        Generate(chat="messages"),
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "user"}]},
        "rows.jsonl:2: message 1 has no text as its content",
    ),
}


@pytest.mark.parametrize(("task", "good", "bad", "said"), FILES.values(), ids=FILES)
def test_a_bad_row_is_named_by_file_and_line(task, good, bad, said, base, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, bad)))
    rows = load(path, need=task.required_fields)
    refused(lambda: bound(task, base).encode_all(rows), said, error=DataError)


def test_a_chat_of_a_million_characters_is_refused_at_once(base):
    task = bound(Generate(chat="messages"), base)
    (row,) = examples({"messages": [{"role": "user", "content": "a b " * 250_000}]})
    begun = time.process_time()
    refused(lambda: task.encode(row, 0), "rows#1: its messages are", "256 fit", error=DataError)
    assert time.process_time() - begun < 20
