"""The claims of the papers, measured: one script per claim, found by its file name.

A claim's file defines `CLAIM`. `inlay reproduce` lists and runs them; `results/` holds what was
measured, held or not.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from bench.claims.base import Claim
from inlay.errors import SpecError, nearest

NOT_CLAIMS = {"__init__", "base", "results", "run", "setting"}


def names() -> list[str]:
    """The names of all claims, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py")
                  if path.stem not in NOT_CLAIMS)  # fmt: skip


def claim(name: str) -> Claim:
    """One claim. Raises SpecError where there is none of that name."""
    if name not in names():
        raise SpecError(f"there is no claim {name!r}{nearest(name, names())}")
    return import_module(f"bench.claims.{name}").CLAIM
