"""Where the data sets are that the repository does not hold."""

from __future__ import annotations

import os
from pathlib import Path

from inlay.errors import DataError

ROOT = Path(__file__).parents[1]
VARIABLE = "INLAY_DATA"


def data_folder(option: Path | None = None) -> Path | None:
    """Find the folder of the data sets.

    option: the value of `--data`; without it the variable INLAY_DATA counts, and then `shared/data`
        next to the checkout.

    Returns None if neither names a folder and there is none next to the checkout. Raises DataError
    if the option or the variable names something that is not a folder.
    """
    variable = os.environ.get(VARIABLE)
    path = option or (Path(variable) if variable else None)
    if path is None:
        sibling = ROOT.parent / "shared" / "data"
        return sibling if sibling.is_dir() else None
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; --data and {VARIABLE} name the data sets' folder")
    return path
