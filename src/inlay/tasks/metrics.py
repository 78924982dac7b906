"""What predictions are measured by; the arithmetic is sacrebleu's, rouge-score's, scikit-learn's.

Spans of tags are counted as conlleval counts them, and answers as the script of SQuAD 2 does: both
are definitions of a few lines, and stand here.

BLEU, chrF and ROUGE run from 0 to 100; shares such as accuracy and exact match from 0 to 1.
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

GenerationMetric = Literal["bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match"]
ClassificationMetric = Literal["accuracy", "macro_f1", "micro_f1", "f1", "matthews"]
RegressionMetric = Literal["pearson", "spearman", "r2"]
TaggingMetric = Literal["f1", "precision", "recall", "accuracy"]
ExtractionMetric = Literal["f1", "exact_match"]
Span = tuple[str, int, int]
"""A type, the first word of that type, and the last."""

CURE = "pip install 'inlay[metrics]'"


def generation(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]]
) -> dict[str, float]:
    """Every `GenerationMetric` of texts against one reference each, or a list of several.

    BLEU and chrF are sacrebleu's, of the corpus, with its default tokenisation. ROUGE is the mean
    F1 without stemming, with the reference that suits a text best. Exact match is with any of
    them, and ignores white space at both ends.
    """
    _check(predictions, references)
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu import corpus_bleu, corpus_chrf
    except ImportError as error:
        raise TaskError(f"scoring texts needs {error.name}: {CURE}") from None
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds)
    lists = [[one] if isinstance(one, str) else one for one in references]
    pairs = list(zip(predictions, lists, strict=True))
    rouge = [scorer.score_multi(targets=own, prediction=text) for text, own in pairs]
    means = {kind: 100 * sum(row[kind].fmeasure for row in rouge) / len(rouge) for kind in kinds}
    # sacrebleu wants the first references of all texts, then the second ones, None where missing.
    streams: Any = [list(stream) for stream in zip_longest(*lists)]
    same = [any(text.strip() == one.strip() for one in own) for text, own in pairs]
    return {
        "bleu": corpus_bleu(list(predictions), streams, force=True).score,
        "chrf": corpus_chrf(list(predictions), streams).score,
        **means,
        "exact_match": sum(same) / len(pairs),
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
    one = len({*gold, *predictions}) == 1  # the coefficient is 0/0 there, and 0 by convention
    scores = {
        "accuracy": float(accuracy_score(gold, predictions)),
        "macro_f1": float(f1_score(gold, predictions, average="macro", zero_division=0)),
        "matthews": 0.0 if one else float(matthews_corrcoef(gold, predictions)),
    }
    if positive is not None:
        ours, theirs = ([name == positive for name in names] for names in (predictions, gold))
        scores["f1"] = float(f1_score(theirs, ours, zero_division=0))
    return scores


def multi_label(
    predictions: Sequence[Sequence[str]], gold: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict[str, float]:
    """Of any number of labels a row: accuracy of whole rows, macro and micro F1 over `labels`.

    The F1 of a label that neither occurs nor is predicted is 0.
    """
    _check(predictions, gold)
    with _scikit():
        from sklearn.metrics import accuracy_score, f1_score
    ours, theirs = (
        [[int(label in row) for label in labels] for row in rows] for rows in (predictions, gold)
    )
    return {
        "accuracy": float(accuracy_score(theirs, ours)),
        "macro_f1": float(f1_score(theirs, ours, average="macro", zero_division=0)),
        "micro_f1": float(f1_score(theirs, ours, average="micro", zero_division=0)),
    }


ALIKE = 1e-5
"""By what share of the largest one equal predictions may differ: batches round differently."""


def regression(predictions: Sequence[float], gold: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's correlation of numbers, and R², the share of variance explained.

    Where the predictions or the gold numbers are all alike, correlations are 0/0, and 0 here by
    convention; so is R² where the gold ones are. Predictions that differ by rounding are alike.
    """
    _check(predictions, gold)
    with _scikit():
        from scipy.stats import pearsonr, spearmanr
        from sklearn.metrics import r2_score
    varied = len(set(gold)) > 1
    spread, largest = max(predictions) - min(predictions), max(map(abs, predictions))
    related = varied and spread > ALIKE * largest
    return {
        "pearson": float(pearsonr(predictions, gold).statistic) if related else 0.0,
        "spearman": float(spearmanr(predictions, gold).statistic) if related else 0.0,
        "r2": float(r2_score(gold, predictions)) if varied else 0.0,
    }


@contextmanager
def _scikit() -> Iterator[None]:
    """Say what an import of scikit-learn, or of scipy below it, is missing."""
    try:
        yield
    except ImportError:
        raise TaskError(f"scoring labels needs scikit-learn: {CURE}") from None


def accuracy(predictions: Sequence[Any], gold: Sequence[Any]) -> float:
    """The share of predictions that are right."""
    _check(predictions, gold)
    return sum(a == b for a, b in zip(predictions, gold, strict=True)) / len(gold)


OUTSIDE = "O"
"""The tag of a word that belongs to nothing."""

LETTERS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}
"""What may stand in front of a type, in IOB1, IOB2, IOE, BIOES, BILOU and BMES, as BIOES has it."""


def parted(tag: str) -> tuple[str, str] | None:
    """A tag as its letter in BIOES and its type; None for outside.

    Raises ValueError for a tag that is neither "O" nor a letter of `LETTERS`, with a type or bare.
    """
    if tag == OUTSIDE:
        return None
    letter, dash, kind = tag.partition("-")
    if letter not in LETTERS or (dash and not kind):
        raise ValueError(tag)
    return LETTERS[letter], kind


def spans(tags: Sequence[str]) -> set[Span]:
    """The spans of one row of tags, in whichever of the schemes, as conlleval finds them.

    A word goes on with the span before it if it is an I or E behind a B or I of the same type;
    any other word that is not outside begins a span, whatever its letter.
    """
    found: list[Span] = []
    before: tuple[str, str] | None = None
    for place, tag in enumerate(tags):
        here = parted(tag)
        if here is not None:
            letter, kind = here
            goes_on = letter in "IE" and before is not None and before[0] in "BI"
            if goes_on and before is not None and before[1] == kind:
                found[-1] = (kind, found[-1][1], place)
            else:
                found.append((kind, place, place))
        before = here
    return set(found)


def tagging(
    predictions: Sequence[Sequence[str]], gold: Sequence[Sequence[str]], *, plain: bool = False
) -> dict[str, float]:
    """Every `TaggingMetric` of rows of tags.

    Precision, recall and F1 are over the spans of all rows together, a span being right if its
    type and both its ends are; with `plain`, over the words that are not outside. Where nothing is
    said, or nothing is there to find, they are 0. Accuracy is over all words.
    """
    _check(predictions, gold)
    right = said = there = same = words = 0
    for ours, theirs in zip(predictions, gold, strict=True):
        if len(ours) != len(theirs):
            raise DataError(f"{len(ours)} predicted tags for {len(theirs)} words")
        a, b = (_single(ours), _single(theirs)) if plain else (spans(ours), spans(theirs))
        right, said, there = right + len(a & b), said + len(a), there + len(b)
        same += sum(x == y for x, y in zip(ours, theirs, strict=True))
        words += len(theirs)
    return {
        "f1": 2 * right / (said + there) if right else 0.0,
        "precision": right / said if said else 0.0,
        "recall": right / there if there else 0.0,
        "accuracy": same / words if words else 0.0,
    }


def _single(tags: Sequence[str]) -> set[Span]:
    return {(tag, place, place) for place, tag in enumerate(tags) if tag != OUTSIDE}


ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """An answer in lower case, without punctuation (of ASCII), articles and extra white space."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def extraction(predictions: Sequence[str], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """Every `ExtractionMetric` of answers, each against the gold answer that suits it best.

    Answers are compared `normalised`; F1 is over their words. A question without gold answers is
    answered rightly by "" alone.
    """
    _check(predictions, gold)
    exact = f1 = 0.0
    for said, answers in zip(predictions, gold, strict=True):
        ours = normalised(said)
        theirs = [made for answer in answers if (made := normalised(answer))] or [""]
        exact += max(ours == one for one in theirs)
        f1 += max(_overlap(ours.split(), one.split()) for one in theirs)
    return {"f1": f1 / len(gold), "exact_match": exact / len(gold)}


def _overlap(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """F1 of two bags of words; of an empty one, whether both are."""
    if not ours or not theirs:
        return float(not ours and not theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


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


def _check(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    if not predictions:
        raise DataError("there is nothing to score: no predictions")
    if len(predictions) != len(references):
        raise DataError(f"{len(predictions)} predictions for {len(references)} examples")
