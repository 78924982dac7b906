"""Metrics against numbers worked out by hand."""

import math
import sys

import pytest

from inlay.errors import DataError, TaskError
from inlay.tasks import metrics


def test_perfect_texts():
    texts = ["the cat sat on the mat", "a dog ran over the hill"]
    assert metrics.generation(texts, texts) == pytest.approx(
        {
            "bleu": 100,
            "chrf": 100,
            "rouge1": 100,
            "rouge2": 100,
            "rougeL": 100,
            "exact_match": 1,
        }
    )


def test_bleu_by_hand():
    found = metrics.generation(["a b c d e x"], ["a b c d e f"])["bleu"]
    expected = 100 * math.exp(sum(map(math.log, (5 / 6, 4 / 5, 3 / 4, 2 / 3))) / 4)
    assert found == pytest.approx(expected)
    short = metrics.generation(["a b c d"], ["a b c d e"])["bleu"]
    assert short == pytest.approx(100 * math.exp(1 - 5 / 4))  # the brevity penalty alone


def test_rouge_by_hand():
    found = metrics.generation(["a c b"], ["a b c d"])
    assert found["rouge1"] == pytest.approx(100 * 2 * (3 / 3) * (3 / 4) / (3 / 3 + 3 / 4))
    assert found["rouge2"] == 0
    assert found["rougeL"] == pytest.approx(100 * 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    both = metrics.generation(["a c b", "x"], ["a b c d", "y"])
    assert both["rouge1"] == pytest.approx(found["rouge1"] / 2)


def test_chrf_and_exact_match_by_hand():
    found = metrics.generation(["ab", " c "], ["ax", "c"])
    assert found["exact_match"] == 0.5
    # one letter: 2 of 3 right; two letters: 0 of 1; longer ones do not exist
    assert found["chrf"] == pytest.approx(100 * (2 / 3) / 2)


def test_classification_by_hand():
    gold = ["a", "a", "a", "b", "b", "b"]
    said = ["a", "a", "b", "b", "b", "a"]
    found = metrics.classification(said, gold)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["macro_f1"] == pytest.approx(2 / 3)
    assert found["matthews"] == pytest.approx((2 * 2 - 1 * 1) / math.sqrt(3 * 3 * 3 * 3))


def test_one_class_only_is_no_error():
    found = metrics.classification(["a", "a"], ["a", "a"])
    assert found["accuracy"] == 1
    assert found["matthews"] == 0


def test_f1_of_one_label():
    found = metrics.classification(["a", "b", "b"], ["b", "b", "a"], positive="b")
    assert found["f1"] == pytest.approx(1 / 2)
    assert "f1" not in metrics.classification(["a"], ["a"])
    assert metrics.classification(["a"], ["a"], positive="b")["f1"] == 0


def test_many_labels_by_hand():
    gold = [["a", "b"], [], ["c"], ["a"]]
    found = metrics.multi_label([["b", "a"], [], ["b"], []], gold, ["a", "b", "c", "d"])
    assert found["accuracy"] == 2 / 4
    assert found["micro_f1"] == pytest.approx(2 * 2 / (3 + 4))
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0 + 0) / 4)


def test_numbers_by_hand():
    found = metrics.regression([1.0, 2.0, 6.0], [1.0, 3.0, 5.0])
    assert found["pearson"] == pytest.approx(10 / math.sqrt(14 * 8))
    assert found["spearman"] == pytest.approx(1)
    assert found["r2"] == pytest.approx(1 - 2 / 8)
    assert metrics.regression([3.0, 2.0], [1.0, 2.0])["spearman"] == pytest.approx(-1)


def test_numbers_that_are_all_alike_are_no_error():
    assert set(metrics.regression([1.0, 1.0], [1.0, 2.0]).values()) == {0.0, -1.0}
    assert set(metrics.regression([1.0, 2.0], [3.0, 3.0]).values()) == {0.0}
    assert set(metrics.regression([1.0], [3.0]).values()) == {0.0}
    rounded = metrics.regression([1.0329854, 1.0329857, 1.0329854], [1.0, 2.0, 3.0])
    assert rounded["pearson"] == rounded["spearman"] == 0.0


def test_confusion():
    counts = metrics.confusion(["a", "b", "b"], ["a", "a", "c"], ["a", "b", "c"])
    assert counts == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("score", [metrics.generation, metrics.classification, metrics.regression])
def test_nothing_to_score(score):
    with pytest.raises(DataError, match="no predictions to score"):
        score([], [])
    with pytest.raises(DataError, match="1 predictions for 2 examples"):
        score(["a"], ["a", "b"])


@pytest.mark.parametrize(
    ("score", "module"),
    [
        (metrics.generation, "sacrebleu"),
        (metrics.classification, "sklearn.metrics"),
        (metrics.regression, "scipy.stats"),
    ],
)
def test_a_missing_extra_is_named(score, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TaskError, match=r"pip install 'inlay\[metrics\]'"):
        score(["a"], ["a"])
