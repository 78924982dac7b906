"""Bad rows, whoever notices them: named with how many more there are, or left out."""

import pytest

from inlay.data import load
from inlay.data.dataset import Dataset
from inlay.errors import DataError
from inlay.tasks import (
    BinaryCrossEntropy,
    Choose,
    Classify,
    Extract,
    Generate,
    Regress,
    Tag,
    TrainedHead,
)
from inlay.tasks.usable import encode_usable
from tests.tasks.tiny import examples, refused, tokenizer
from tests.zoo import model

CHAT = (
    "{% for m in messages %}{{ m.role[0] }} : {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}a : {% endif %}"
)
LONG = "one " * 80


def chat(*texts):
    roles = ("user", "assistant") * len(texts)
    return {"messages": [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]}


SQUAD = {"question": "a dog", "context": "the cat sat", "answers": []}
CASES = {
    "classify": (
        Classify(by=TrainedHead(["no", "yes"])),
        {"text": "good", "label": "yes"},
        [
            {"text": "", "label": "yes"},
            {"text": "good", "label": ""},
            {"text": "good", "label": "maybe"},
            {"text": LONG, "label": "no"},
        ],
    ),
    "several labels": (
        Classify(by=TrainedHead(["no", "yes"]), objective=BinaryCrossEntropy()),
        {"text": "good", "labels": ["yes"]},
        [
            {"text": "good", "labels": [""]},
            {"text": "good", "labels": "yes"},
            {"text": " ", "labels": []},
            {"text": "good", "labels": [1, 0, 0]},
        ],
    ),
    "regress": (
        Regress(),
        {"text": "good", "label": 1},
        [{"text": "", "label": 1}, {"text": "good", "label": "x"}, {"text": LONG, "label": 2}],
    ),
    "choose": (
        Choose(),
        {"text": "good", "choices": ["a", "b"], "label": 1},
        [
            {"text": "good", "choices": ["a"], "label": 0},
            {"text": "good", "choices": ["a", "b"], "label": 2},
            {"text": "", "choices": ["a", "b"], "label": 0},
            {"text": "good", "choices": ["a", ""], "label": 0},
        ],
    ),
    "tag": (
        Tag(labels=["O", "B-a"]),
        {"tokens": ["cat"], "tags": ["B-a"]},
        [
            {"tokens": ["cat"], "tags": ["O", "O"]},
            {"tokens": [], "tags": []},
            {"tokens": ["cat"], "tags": ["B-b"]},
            {"tokens": ["cat"] * 80, "tags": ["O"] * 80},
        ],
    ),
    "extract": (
        Extract(),
        SQUAD,
        [
            {**SQUAD, "context": " "},
            {**SQUAD, "question": ""},
            {**SQUAD, "answers": [{"text": "dog", "start": 0}]},
            {**SQUAD, "context": LONG},
        ],
    ),
    "generate": (
        Generate(),
        {"source": "good", "target": "dog"},
        [
            {"source": "", "target": "dog"},
            {"source": "good", "target": ""},
            {"source": LONG, "target": "dog"},
            {"source": "good", "target": LONG},
        ],
    ),
    "chats": (
        Generate(chat="messages"),
        chat("good", "dog"),
        [
            {"messages": []},
            chat("good", ""),
            chat(LONG, "dog"),
            {"messages": [{"role": "user"}]},
        ],
    ),
}


@pytest.mark.parametrize(("task", "good", "bad"), CASES.values(), ids=CASES)
def test_every_kind_of_bad_row_is_left_out_and_named(task, good, bad):
    family = "llama" if isinstance(task, Generate) else "bert"
    kind = "decoder" if family == "llama" else "encoder"
    task.bind(model(family), tokenizer(kind, bos=True, chat=CHAT))
    rows = [good, bad[0], good, *bad[1:], good]
    data = Dataset("rows", tuple(examples(*rows)))
    usable = task.usable(data)
    names = ["rows#2", *(f"rows#{n + 3}" for n in range(1, len(bad)))]
    assert [row.where for row in usable.skipped] == names
    assert all(row.reason and not row.reason.startswith("rows#") for row in usable.skipped)
    assert [example.where for example in usable] == ["rows#1", "rows#3", f"rows#{len(rows)}"]
    encoded = task.encode_all(usable.examples)
    assert [row.index for row in encoded] == [0, 1, 2]
    more = len(bad) - 1
    refused(
        lambda: task.encode_all(data.examples),
        f"rows#2: {usable.skipped[0].reason}; {more} more rows are bad, the next at rows#4",
        error=DataError,
    )
    refused(
        lambda: task.usable(Dataset("rows", tuple(examples(bad[0])))),
        "rows holds no usable row: all 1 rows are bad, the first at rows#1",
        error=DataError,
    )


FOUND = {
    "classify": [2],
    "several labels": [1, 2, 4],
    "regress": [2],
    "choose": [1, 2, 4],
    "tag": [1, 2],
    "extract": [1, 2, 3],
    "generate": [2],
    "chats": [1, 2, 4],
}
"""Which of the bad rows are found while reading; the others take a tokenizer or the labels."""


@pytest.mark.parametrize("name", CASES)
def test_what_needs_no_tokenizer_is_found_while_reading(name):
    task, good, bad = CASES[name]
    data = load([good, *bad], need=task.required_fields, check=task.check, skip_bad=True)
    assert data[0].where == "rows#1"
    assert [row.where for row in data.skipped] == [f"rows#{n + 1}" for n in FOUND[name]]
    task.check(examples({})[0])


def test_indices_go_on_where_bad_examples_are_left_out():
    seen = []

    def encode(part, first):
        seen.append(len(part))
        if any(example.fields["n"] % 7 == 3 for example in part):
            raise DataError("a text holds a character; remove it")
        return [first + place for place in range(len(part))]

    rows = examples(*({"n": n} for n in range(50)))
    usable = encode_usable(encode, rows, 100)
    assert usable.rows == list(range(100, 143))
    assert [example.fields["n"] for example in usable.examples] == [n for n in range(50) if n % 7 != 3]  # fmt: skip
    assert str(usable.bad[0]) == "rows#4: a text holds a character; remove it"
    assert len(usable.bad) == 7 and max(seen) == 50
