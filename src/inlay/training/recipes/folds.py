"""Folds of a data set for cross-validation, with equal shares of each label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from inlay.data.dataset import Dataset
from inlay.errors import DataError, TrainingError
from inlay.tasks import Task
from inlay.tasks.metrics import INSTALL


def split_folds(data: Dataset, task: Task, count: int, seed: int) -> list[tuple[Dataset, Dataset]]:
    """For every fold the rows to train on and the held-out rows, both in their order.

    Each row is held out once. Where the task has a `stratum`, a fold has as many rows of each as
    any other, give or take one. The same seed draws the same folds.

    Args:
        data: all rows.
        task: says which stratum a row is of.
        count: how many folds.
        seed: of the draw.

    Raises DataError where there are fewer rows, or fewer of a stratum, than folds; TrainingError
    without scikit-learn.
    """
    try:  # an optional dependency
        from sklearn.model_selection import KFold, StratifiedKFold
    except ImportError:
        raise TrainingError(f"cross-validation needs scikit-learn: {INSTALL}") from None
    strata = [task.stratum(example) for example in data]
    if len(data) < count:
        raise DataError(f"{data.source} has {len(data)} rows, fewer than folds={count}")
    if None not in strata:
        for stratum, rows in Counter(strata).items():
            if rows < count:
                raise DataError(
                    f"{data.source} has {rows} of label {stratum!r}, fewer than folds={count}"
                )
        splits = StratifiedKFold(count, shuffle=True, random_state=seed).split(strata, strata)
    else:
        splits = KFold(count, shuffle=True, random_state=seed).split(strata)

    def subset(numbers: Sequence[int]) -> Dataset:
        return Dataset(data.source, tuple(data[number] for number in numbers))

    return [
        (Dataset(data.source, subset(train).examples, data.skipped), subset(held_out))
        for train, held_out in splits
    ]
