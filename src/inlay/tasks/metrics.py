"""What predictions are measured by; the arithmetic is sacrebleu's, rouge-score's, scikit-learn's.

BLEU, chrF and ROUGE run from 0 to 100; shares such as accuracy and exact match from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from inlay.errors import DataError, TaskError

GenerationMetric = Literal["bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match"]
ClassificationMetric = Literal["accuracy", "macro_f1", "matthews"]

CURE = "pip install 'inlay[metrics]'"


def generation(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Every `GenerationMetric` of texts against one reference each.

    BLEU and chrF are sacrebleu's, of the corpus, with its default tokenisation. ROUGE is the mean
    F1 without stemming. Exact match ignores white space at both ends.
    """
    _check(predictions, references)
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu import corpus_bleu, corpus_chrf
    except ImportError as error:
        raise TaskError(f"scoring texts needs {error.name}: {CURE}") from None
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds)
    pairs = list(zip(predictions, references, strict=True))
    rouge = [scorer.score(target=reference, prediction=text) for text, reference in pairs]
    means = {kind: 100 * sum(row[kind].fmeasure for row in rouge) / len(rouge) for kind in kinds}
    return {
        "bleu": corpus_bleu(list(predictions), [list(references)], force=True).score,
        "chrf": corpus_chrf(list(predictions), [list(references)]).score,
        **means,
        "exact_match": sum(a.strip() == b.strip() for a, b in pairs) / len(pairs),
    }


def classification(predictions: Sequence[str], gold: Sequence[str]) -> dict[str, float]:
    """Every `ClassificationMetric` of labels; macro F1 is over the labels that occur."""
    _check(predictions, gold)
    try:
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
    except ImportError:
        raise TaskError(f"scoring labels needs scikit-learn: {CURE}") from None
    one = len({*gold, *predictions}) == 1  # the coefficient is 0/0 there, and 0 by convention
    return {
        "accuracy": float(accuracy_score(gold, predictions)),
        "macro_f1": float(f1_score(gold, predictions, average="macro", zero_division=0)),
        "matthews": 0.0 if one else float(matthews_corrcoef(gold, predictions)),
    }


def confusion(
    predictions: Sequence[str], gold: Sequence[str], labels: Sequence[str]
) -> list[list[int]]:
    """How often label i (the row) was predicted as label j (the column), `[C, C]`."""
    _check(predictions, gold)
    place = {label: number for number, label in enumerate(labels)}
    counts = [[0] * len(place) for _ in place]
    for said, true in zip(predictions, gold, strict=True):
        counts[place[true]][place[said]] += 1
    return counts


def _check(predictions: Sequence[str], references: Sequence[str]) -> None:
    if not predictions:
        raise DataError("there is nothing to score: no predictions")
    if len(predictions) != len(references):
        raise DataError(f"{len(predictions)} predictions for {len(references)} examples")
