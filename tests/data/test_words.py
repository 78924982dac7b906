"""Starting values of prompts from words."""

import pytest

import inlay
from inlay.errors import SpecError
from tests.tasks.tiny import tokenizer


def test_words_and_labels_become_groups_of_tokens():
    read = tokenizer("decoder")
    ids = read.encode("good cat", add_special_tokens=False)
    assert inlay.words(read, "good cat") == tuple((token,) for token in ids)
    assert inlay.labels(read, ["good cat"]) == (tuple(ids),)


def test_what_has_no_tokens_is_refused():
    for make in (lambda read: inlay.words(read, ""), lambda read: inlay.labels(read, ["a", ""])):
        with pytest.raises(SpecError, match="has no tokens"):
            make(tokenizer("decoder"))
