"""Metrics of predictions; most of the arithmetic is that of sacrebleu, rouge-score, scikit-learn.

Spans of tags are counted as conlleval does, and answers as the script of SQuAD 2 does; both take a
few lines, which are in `spans.py` and here.

BLEU, chrF and ROUGE run from 0 to 100; fractions such as accuracy and exact match from 0 to 1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, Literal

from inlay.errors import DataError, TaskError
from inlay.tasks.spans import single_words, spans

GenerationMetric = Literal["bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match"]
ClassificationMetric = Literal["accuracy", "macro_f1", "micro_f1", "f1", "matthews"]
RegressionMetric = Literal["pearson", "spearman", "r2"]
TaggingMetric = Literal["f1", "precision", "recall", "accuracy"]
ExtractionMetric = Literal["f1", "exact_match"]
INSTALL = "pip install 'inlay[metrics]'"


def generation(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]]
) -> dict[str, float]:
    """Every `GenerationMetric` of texts against one reference each, or a list of several.

    BLEU and chrF are sacrebleu's, of the corpus, with its default tokenisation. ROUGE is the mean
    F1 without stemming, with the best reference of each text. Exact match is with any reference,
    and ignores white space at both ends.
    """
    _check(predictions, references)
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu import corpus_bleu, corpus_chrf
    except ImportError as error:
        raise TaskError(f"scoring texts needs {error.name}: {INSTALL}") from None
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds)
    lists = [[text] if isinstance(text, str) else text for text in references]
    pairs = list(zip(predictions, lists, strict=True))
    rouge = [scorer.score_multi(targets=texts, prediction=text) for text, texts in pairs]
    means = {kind: 100 * sum(row[kind].fmeasure for row in rouge) / len(rouge) for kind in kinds}
    # sacrebleu takes the first references of all texts, then the second ones, None where missing.
    streams: Any = [list(stream) for stream in zip_longest(*lists)]
    exact = [any(text.strip() == target.strip() for target in texts) for text, texts in pairs]
    return {
        "bleu": corpus_bleu(list(predictions), streams, force=True).score,
        "chrf": corpus_chrf(list(predictions), streams).score,
        **means,
        "exact_match": sum(exact) / len(pairs),
    }


def classification(
    predictions: Sequence[str], gold: Sequence[str], *, positive: str | None = None
) -> dict[str, float]:
    """Accuracy, macro F1 over the labels that occur, and Matthews' coefficient of labels.

    Also the F1 of the label `positive`, where one is given: 0 where it never occurs.
    """
    _check(predictions, gold)
    with _scikit():
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
    same = len({*gold, *predictions}) == 1  # the coefficient is 0/0 there, and 0 by convention
    scores = {
        "accuracy": float(accuracy_score(gold, predictions)),
        "macro_f1": float(f1_score(gold, predictions, average="macro", zero_division=0)),
        "matthews": 0.0 if same else float(matthews_corrcoef(gold, predictions)),
    }
    if positive is not None:
        predicted, true = ([name == positive for name in names] for names in (predictions, gold))
        scores["f1"] = float(f1_score(true, predicted, zero_division=0))
    return scores


def multi_label(
    predictions: Sequence[Sequence[str]], gold: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict[str, float]:
    """Metrics of any number of labels for each row.

    Accuracy counts rows of which every label is right; macro and micro F1 are over `labels`. The
    F1 of a label that neither occurs nor is predicted is 0.
    """
    _check(predictions, gold)
    with _scikit():
        from sklearn.metrics import accuracy_score, f1_score
    predicted, true = (
        [[int(label in row) for label in labels] for row in rows] for rows in (predictions, gold)
    )
    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "macro_f1": float(f1_score(true, predicted, average="macro", zero_division=0)),
        "micro_f1": float(f1_score(true, predicted, average="micro", zero_division=0)),
    }


ROUNDING = 1e-5
"""How much equal predictions may differ, relative to the largest: batches round differently."""


def regression(predictions: Sequence[float], gold: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's correlation of numbers, and R², the fraction of variance explained.

    Where the predictions or the gold numbers are all equal, correlations are 0/0, and 0 here by
    convention; so is R² where the gold ones are. Predictions that differ by rounding are equal.
    """
    _check(predictions, gold)
    with _scikit():
        from scipy.stats import pearsonr, spearmanr
        from sklearn.metrics import r2_score
    varied = len(set(gold)) > 1
    spread, largest = max(predictions) - min(predictions), max(map(abs, predictions))
    related = varied and spread > ROUNDING * largest
    return {
        "pearson": float(pearsonr(predictions, gold).statistic) if related else 0.0,
        "spearman": float(spearmanr(predictions, gold).statistic) if related else 0.0,
        "r2": float(r2_score(gold, predictions)) if varied else 0.0,
    }


@contextmanager
def _scikit() -> Iterator[None]:
    """Raise TaskError where scikit-learn, or scipy below it, is not installed."""
    try:
        yield
    except ImportError:
        raise TaskError(f"scoring labels needs scikit-learn: {INSTALL}") from None


def accuracy(predictions: Sequence[Any], gold: Sequence[Any]) -> float:
    """The fraction of predictions that are right."""
    _check(predictions, gold)
    return sum(a == b for a, b in zip(predictions, gold, strict=True)) / len(gold)


def tagging(
    predictions: Sequence[Sequence[str]], gold: Sequence[Sequence[str]], *, plain: bool = False
) -> dict[str, float]:
    """Every `TaggingMetric` of rows of tags.

    Precision, recall and F1 are over the spans of all rows together, a span being right if its
    type and both its ends are; with `plain`, over the words that are not outside. Where nothing is
    predicted, or there are no gold spans, they are 0. Accuracy is over all words.
    """
    _check(predictions, gold)
    spans_of = single_words if plain else spans
    right = predicted = true = equal = words = 0
    for tags, gold_tags in zip(predictions, gold, strict=True):
        if len(tags) != len(gold_tags):
            raise DataError(f"{len(tags)} predicted tags for {len(gold_tags)} words")
        predicted_spans, gold_spans = spans_of(tags), spans_of(gold_tags)
        right += len(predicted_spans & gold_spans)
        predicted += len(predicted_spans)
        true += len(gold_spans)
        equal += sum(a == b for a, b in zip(tags, gold_tags, strict=True))
        words += len(gold_tags)
    return {
        "f1": 2 * right / (predicted + true) if right else 0.0,
        "precision": right / predicted if predicted else 0.0,
        "recall": right / true if true else 0.0,
        "accuracy": equal / words if words else 0.0,
    }


ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """An answer in lower case, without punctuation (of ASCII), articles and extra white space."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def extraction(predictions: Sequence[str], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """Every `ExtractionMetric` of answers, each against its best gold answer.

    Answers are compared `normalised`; F1 is over their words. The right answer to a question
    without gold answers is "".
    """
    _check(predictions, gold)
    exact = f1 = 0.0
    for prediction, answers in zip(predictions, gold, strict=True):
        answer = normalised(prediction)
        gold_texts = [text for each in answers if (text := normalised(each))] or [""]
        exact += max(answer == text for text in gold_texts)
        f1 += max(_word_f1(answer.split(), text.split()) for text in gold_texts)
    return {"f1": f1 / len(gold), "exact_match": exact / len(gold)}


def _word_f1(words: Sequence[str], gold: Sequence[str]) -> float:
    """F1 of two bags of words; where one is empty, whether both are."""
    if not words or not gold:
        return float(not words and not gold)
    return 2 * (Counter(words) & Counter(gold)).total() / (len(words) + len(gold))


def confusion(
    predictions: Sequence[str], gold: Sequence[str], labels: Sequence[str]
) -> list[list[int]]:
    """How often label i (the row) was predicted as label j (the column), `[C, C]`."""
    _check(predictions, gold)
    number = {label: n for n, label in enumerate(labels)}
    counts = [[0] * len(number) for _ in number]
    for predicted, true in zip(predictions, gold, strict=True):
        counts[number[true]][number[predicted]] += 1
    return counts


def _check(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    if not predictions:
        raise DataError("there are no predictions to score")
    if len(predictions) != len(references):
        raise DataError(f"{len(predictions)} predictions for {len(references)} examples")
