"""One file a claim: a file in this folder that defines `CLAIM` is all it takes."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from bench.claims.claim import Claim
from inlay.errors import SpecError, nearest

CLAIMS: dict[str, Claim] = {
    module.name: import_module(f"{__name__}.{module.name}").CLAIM
    for module in sorted(iter_modules(__path__), key=lambda module: module.name)
}
"""Every claim by its name."""


def find(name: str) -> Claim:
    """The claim of a name. Raises SpecError with the nearest name if there is none."""
    if name not in CLAIMS:
        raise SpecError(f"there is no claim {name!r}{nearest(name, CLAIMS)}")
    return CLAIMS[name]
