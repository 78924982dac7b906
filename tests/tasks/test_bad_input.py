"""Texts that nobody means to give, in every task that reads free text."""

import time

import pytest

from inlay.errors import DataError
from inlay.tasks import Choose, Classify, Generate, Regress, TrainedHead, Verbalizer
from tests.tasks.tiny import examples, tokenizer
from tests.zoo import model

KINDS = {"llama": "decoder", "bert": "encoder", "t5": "encoder-decoder"}
WORDS = {"no": " bad", "yes": " good"}
TASKS = {
    "classify by a word": lambda **more: Classify(
        by=Verbalizer(WORDS), template="{text} was", **more
    ),
    "classify by a head": lambda **more: Classify(by=TrainedHead(["no", "yes"]), **more),
    "regress": Regress,
    "choose by likelihood": lambda **more: Choose(by="mean", **more),
    "choose by a head": Choose,
    "generate": lambda **more: Generate(template="{text}", **more),
}
LONG = "good film " * 100_000


def row(task, text):
    fields = {"text": text, "label": 1 if "regress" in task else "yes", "target": "good"}
    if "choose" in task:
        fields |= {"choices": ["a cat", "a dog"], "label": 1}
    return examples(fields)[0]


def bound(task, family="llama", **more):
    read = tokenizer(KINDS[family])
    read.model_max_length = 40
    made = TASKS[task](**more)
    made.bind(model(family), read)
    return made


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_million_characters_are_refused_or_cut(task, family):
    assert len(LONG) == 10**6
    start = time.process_time()
    with pytest.raises(
        DataError, match=r"^rows#1: its input is 20000\d tokens long and only \d+ fit"
    ):
        bound(task, family).encode(row(task, LONG), 0)
    made = bound(task, family, truncate=True)
    rows = made.encode(row(task, LONG), 0)
    texts = [text.ids for text in rows.texts] if "choose" in task else [rows.input_ids]
    assert max(map(len, texts)) <= made.bound.max_length
    assert time.process_time() - start < 60


def test_a_model_without_a_limit_has_its_tokenizers():
    assert bound("regress", "t5").bound.max_length == 40
    assert bound("regress", "t5", max_length=90).bound.max_length == 90
    assert (
        bound("regress", "llama").bound.max_length == model("llama").config.max_position_embeddings
    )
    made = Regress()
    made.bind(model("t5"), tokenizer("encoder-decoder"))
    assert made.bound.max_length is None


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_text_is_named(task, text):
    made = bound(task)
    if task == "classify by a word":
        assert made.encode(row(task, text), 0).input_ids, "its template adds words"
        return
    with pytest.raises(DataError, match=r"^rows#1: its (text|premise) is empty"):
        made.encode(row(task, text), 0)
