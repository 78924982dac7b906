"""Shares of a data set for cross-validation, with alike shares of each label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from inlay.data.dataset import Dataset
from inlay.errors import DataError, TrainingError
from inlay.tasks import Task
from inlay.tasks.metrics import INSTALL


def folds(data: Dataset, task: Task, count: int, seed: int) -> list[tuple[Dataset, Dataset]]:
    """For every fold the rows to train on and the rows held out, both in their order.

    Each row is held out once. Where the task has a `stratum`, a fold has as many rows of each as
    any other, give or take one. The same seed draws the same folds.

    Raises DataError where there are fewer rows, or fewer of a stratum, than folds; TrainingError
    without scikit-learn.
    """
    try:
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
        parts = StratifiedKFold(count, shuffle=True, random_state=seed).split(strata, strata)
    else:
        parts = KFold(count, shuffle=True, random_state=seed).split(strata)

    def those(places: Sequence[int]) -> Dataset:
        return Dataset(data.source, tuple(data[place] for place in places))

    return [
        (Dataset(data.source, those(train).examples, data.skipped), those(held))
        for train, held in parts
    ]
