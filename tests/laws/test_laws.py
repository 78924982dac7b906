"""Every law, for every method's examples, on every family: as the committed matrix says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inlay.core.method import Spec
from inlay.laws import LAWS
from inlay.testing import FAMILIES
from tests.laws import matrix

COMMITTED = matrix.read()
AGAIN = "; if that is meant, run `python -m tests.laws.matrix` and commit tests/laws/matrix.json"


PORTABLE = {"llama", "bert"}
"""Families whose laws are tried with the kernels of other processors too."""

ALIKE = (
    *("mistral", "qwen2", "qwen3", "phi3", "gemma2", "roberta", "electra"),
    *("t5-gated", "mt5", "marian", "clip-vision", "olmo2"),
)
"""Families whose blocks are much like those of another one, on which all specs are tried."""

SLOW = ("mixtral", "deepseek_v3", "qwen3_next", "mamba2", "falcon", "bloom", "gemma3n")
"""Families of other kinds, whose passes take long; specs made for them are always tried."""

SHARES = dict.fromkeys(ALIKE, 3) | dict.fromkeys(SLOW, 6)
"""Of so many specs one is tried here, another one on each family. The script tries all of them."""


def cases() -> list[Any]:
    """The specs and families that are tried."""
    tried = []
    for number, spec in enumerate(matrix.specs()):
        for place, family in enumerate(FAMILIES):
            share = SHARES.get(family, 1)
            if number % share != place % share and spec not in matrix.ELSEWHERE:
                continue
            marks = pytest.mark.processor if family in PORTABLE else ()
            tried.append(pytest.param(spec, family, marks=marks, id=f"{spec!r}-{family}"))
    return tried


@pytest.mark.parametrize(("spec", "family"), cases())
def test_laws(spec: Spec, family: str) -> None:
    row = COMMITTED.get(repr(spec))
    assert row is not None, f"{spec!r} is not in the matrix{AGAIN}"
    cell = matrix.cell(spec, family)
    assert cell == row[family], f"{spec!r} on {family}: {describe(row[family], cell)}{AGAIN}"


def describe(committed: str, cell: str) -> str:
    """The difference between two cells, in words."""
    if len(committed) != len(LAWS) or len(cell) != len(LAWS):
        return f"it was {committed}, and is {cell}"
    lost = [
        law for law, letter in matrix.LETTERS.items() if letter in committed and letter not in cell
    ]
    new = [
        law for law, letter in matrix.LETTERS.items() if letter in cell and letter not in committed
    ]
    return f"laws that speak no more: {lost}; laws that spoke not before: {new}"


def test_the_matrix_holds_every_spec_once_and_nothing_else() -> None:
    names = [repr(spec) for spec in matrix.specs()]
    assert len(set(names)) == len(names)
    assert list(COMMITTED) == names, f"the matrix has other specs{AGAIN}"
    assert all(list(row) and set(row) == set(FAMILIES) for row in COMMITTED.values())


def test_the_counts_are_those_of_the_matrix() -> None:
    committed = json.loads(matrix.FILE.read_text())
    assert committed["laws"] == {letter: law for law, letter in matrix.LETTERS.items()}
    assert committed["counts"] == matrix.counts(COMMITTED), f"the counts are others{AGAIN}"


def test_every_family_is_spoken_about() -> None:
    """Laws of every method speak wherever the family has what they are about."""
    counts = matrix.counts(COMMITTED)
    for law in ("identity", "no trace", "only pieces learn", "save → load", "rows do not meet"):
        assert all(counts[law].values()), law
