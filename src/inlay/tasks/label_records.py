"""The records of `classify`: labels with their probabilities, and words where words decide."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from inlay.tasks.objectives import BinaryCrossEntropy, Objective
from inlay.tasks.options import Option
from inlay.tasks.records import PREDICTION, Column, Mistake, Record, by_label, surprise
from inlay.tasks.verbalizer import Verbalizer


def classify_columns(
    objective: Objective, by: Option, labels: tuple[str, ...]
) -> tuple[Column, ...]:
    """The columns of the records."""
    each = Column("probabilities", "by label", "the probability of each label", labels)
    if isinstance(objective, BinaryCrossEntropy):
        return (Column(PREDICTION, "texts", "the labels that are likelier than not"), each)
    word = Column("word", "text", "the word that stands for the label, or the first of several")
    return (
        Column(PREDICTION, "text", "the likeliest label"),
        Column("probability", "number", "its probability"),
        each,
        *((word,) if isinstance(by, Verbalizer) else ()),
    )


def classify_records(
    objective: Objective, by: Option, scores: Tensor, labels: Sequence[str], temperature: float
) -> list[Record]:
    """The records of rows with these scores `[B, C]`."""
    decisions = objective.decide(scores, labels)
    records: list[Record] = []
    for decision, shares in zip(
        decisions, objective.shares(scores, temperature).tolist(), strict=True
    ):
        each = by_label(labels, shares)
        if isinstance(decision, list):
            records.append({PREDICTION: decision, "probabilities": each})
            continue
        record = {PREDICTION: decision, "probability": each[decision], "probabilities": each}
        if isinstance(by, Verbalizer):
            record["word"] = by.words_of(decision)[0].strip()
        records.append(record)
    return records


def classify_mistake(record: Record, gold: Sequence[str]) -> Mistake | None:
    """The cost is −log of the probability of what is right, summed over several labels."""
    decision, shares = record[PREDICTION], record["probabilities"]
    if not isinstance(decision, list):
        label = gold[0]
        if decision == label:
            return None
        return Mistake(surprise(shares.get(label, 0.0)), label)
    if set(decision) == set(gold):
        return None
    right = [share if label in gold else 1 - share for label, share in shares.items()]
    return Mistake(sum(map(surprise, right)), list(gold))
