"""Texts become batches of token ids."""

import pytest

import inlay
from inlay import Prompt
from inlay.errors import DataError
from inlay.inspect import attention_shares, text_batches, token_batches
from tests import zoo
from tests.tasks import tiny


def test_texts_become_batches():
    words = tiny.tokenizer("encoder-decoder")
    handle = inlay.attach(zoo.fresh("t5"), Prompt(length=2))
    texts = ["good bad", "the cat sat", "fine"]
    targets = ["yes", "no no no", "all"]
    (whole,) = text_batches(handle, words, texts, targets)
    assert whole["input_ids"].shape == whole["attention_mask"].shape == (3, 4)
    sources, target_ids = (
        [words(text)["input_ids"] for text in lines] for lines in (texts, targets)
    )
    first, second = token_batches(handle, sources, target_ids, size=2)
    assert first["input_ids"].shape == (2, 4)
    assert first["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    no = words.encode("no", add_special_tokens=False)[0]
    assert first["decoder_input_ids"][1].tolist() == [0, no, no, no]  # begins as a decoder does
    assert first["decoder_attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert second["input_ids"].shape == (1, 2)
    (alone,) = text_batches(handle, words, ["the cat sat"])
    assert alone["decoder_input_ids"].tolist() == [[0, *alone["input_ids"][0, :-1]]]


def test_long_texts_are_cut_where_positions_end():
    words = tiny.tokenizer("encoder")
    handle = inlay.attach(zoo.fresh("bert"), Prompt(length=4))
    batches = list(text_batches(handle, words, ["good " * 100]))
    assert batches[0]["input_ids"].shape == (1, 60)
    assert len(attention_shares(handle, batches)) == 1


def test_a_text_without_tokens_is_refused():
    handle = inlay.attach(zoo.fresh("llama"), Prompt(length=4))
    with pytest.raises(DataError, match="has no tokens"):
        list(text_batches(handle, tiny.tokenizer("decoder"), [""]))
