"""The matrix: for every spec and family, which laws spoke, or how the family refused the spec.

`matrix.json` beside this file is what the tests compare with, so that no law falls silent and no
spec becomes impossible unnoticed. After adding a method, or changing what laws apply to:

    python -m tests.laws.matrix            # everything, some minutes
    python -m tests.laws.matrix LoRA IA3   # only the specs in which these methods are

and read the difference: it is part of the change.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import inlay
from inlay.core.method import Spec
from inlay.errors import SiteError
from inlay.laws import LAWS
from inlay.testing import FAMILIES, laws_hold

FILE = Path(__file__).with_name("matrix.json")

SUMS = [
    inlay.LoRA(rank=2) + inlay.Prefix(length=2, mlp=None),
    inlay.Houlsby(bottleneck=3, std=0.1) + inlay.LoRA(rank=2) + inlay.IA3(),
    inlay.Prompt(length=2) + inlay.Prefix(length=3, mlp=None) + inlay.BitFit(),
]

LETTERS = dict(zip(LAWS, "ibpsrxfmgcndhwljuktz", strict=True))
"""One letter for every law."""

Cell = str
"""The letters of the laws that spoke, `-` for each that did not; or the type of a refusal."""


def specs() -> list[Spec]:
    """Every example of every method of this package, and some sums."""
    examples = [example for kind in inlay.METHODS.values() for example in kind.examples]
    return [*examples, *SUMS]


def cell(spec: Spec, family: str) -> Cell:
    """Run all laws. Raises LawError where one does not hold."""
    verdict = laws_hold(spec, family)
    if verdict.refusal is not None:
        assert isinstance(verdict.refusal, SiteError)
        return type(verdict.refusal).__name__
    return "".join(letter if law in verdict.spoke else "-" for law, letter in LETTERS.items())


def read() -> dict[str, dict[str, Cell]]:
    """The committed cells, by text of the spec and family."""
    data = json.loads(FILE.read_text())
    return {
        spec: {family: cell for cell, families in by_cell.items() for family in families.split()}
        for spec, by_cell in data["specs"].items()
    }


def counts(cells: dict[str, dict[str, Cell]]) -> dict[str, dict[str, int]]:
    """How often each law spoke on each family."""
    return {
        law: {
            family: sum(
                letter in row.get(family, "") for row in cells.values() if _ran(row, family)
            )
            for family in FAMILIES
        }
        for law, letter in LETTERS.items()
    }


def _ran(row: dict[str, Cell], family: str) -> bool:
    return len(row.get(family, "")) == len(LETTERS)


def write(cells: dict[str, dict[str, Cell]]) -> None:
    """Write the file: one line a spec, its families grouped by what the laws said."""
    grouped: dict[str, dict[str, str]] = {}
    for spec, row in cells.items():
        by_cell: dict[Cell, list[str]] = {}
        for family in FAMILIES:
            by_cell.setdefault(row[family], []).append(family)
        grouped[spec] = {cell: " ".join(families) for cell, families in by_cell.items()}
    sections: dict[str, dict[str, Any]] = {
        "laws": {letter: law for law, letter in LETTERS.items()},
        "specs": grouped,
        "counts": counts(cells),
    }
    lines = []
    for section, entries in sections.items():
        body = ",\n".join(
            f"  {json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
            for key, value in entries.items()
        )
        lines.append(f"{json.dumps(section)}: {{\n{body}\n}}")
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(names: list[str]) -> None:
    """Compute the cells of all specs, or of those with the methods so called, and write them."""
    before = read() if FILE.exists() else {}
    cells: dict[str, dict[str, Cell]] = {}
    for spec in specs():
        kinds = {type(method).__name__ for method in spec.methods}
        if names and not kinds & set(names) and repr(spec) in before:
            cells[repr(spec)] = before[repr(spec)]
            continue
        print(repr(spec), flush=True)
        cells[repr(spec)] = {family: cell(spec, family) for family in FAMILIES}
    write(cells)


if __name__ == "__main__":
    main(sys.argv[1:])
