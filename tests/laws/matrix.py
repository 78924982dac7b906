"""The matrix: for every spec and family, which laws spoke, or how the family refused the spec.

`matrix.json` beside this file is what the tests compare with, so that no law falls silent and no
spec becomes impossible unnoticed. After adding a method, or changing what laws apply to:

    python -m tests.laws.matrix            # everything, some minutes
    python -m tests.laws.matrix LoRA IA3   # only the specs in which these methods are
    python -m tests.laws.matrix --families mixtral,mamba2      # only these families

and read the difference: it is part of the change.
"""

from __future__ import annotations

import argparse
import json
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

ELSEWHERE = [
    inlay.LoRA(rank=2, at=("mlp.experts.gate?", "mlp.experts.up?", "mlp.experts.down?")),
    inlay.LoRA(rank=2, at=("mlp.router?", "mlp.shared.up?", "mlp.shared.down?")),
    inlay.LoRA(rank=2, at=("attn.q_a?", "attn.q_b?", "attn.kv_a?", "attn.kv_b?")),
    inlay.LoRA(rank=2, at=("mixer.in?", "mixer.qkvz?", "mixer.ba?", "mixer.out?")),
    inlay.IA3(at=("mlp.experts.down?", "mixer.out?", "attn.kv_b?")),
    inlay.Houlsby(bottleneck=3, std=0.1, at=("mixer",)),
]
"""Specs for places that only some kinds of families have."""

LETTERS = dict(zip(LAWS, "ibpsrxfmgcndhwljuktz", strict=True))
"""One letter for every law."""

Cell = str
"""The letters of the laws that spoke, `-` for each that did not; or the type of a refusal."""


def specs() -> list[Spec]:
    """Every example of every method of this package, and some sums."""
    examples = [example for kind in inlay.METHODS.values() for example in kind.examples]
    return [*examples, *SUMS, *ELSEWHERE]


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


def main(methods: list[str], families: list[str]) -> None:
    """Compute cells and write them: all, or those of these methods, on these families."""
    before = read() if FILE.exists() else {}
    cells: dict[str, dict[str, Cell]] = {}
    for spec in specs():
        kinds = {type(method).__name__ for method in spec.methods}
        row = dict(before.get(repr(spec), {}))
        wanted = [f for f in FAMILIES if f not in row or not families or f in families]
        if methods and not kinds & set(methods) and row:
            wanted = [f for f in wanted if f not in row]
        if wanted:
            print(repr(spec), flush=True)
        row |= {family: cell(spec, family) for family in wanted}
        cells[repr(spec)] = row
    write(cells)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.laws.matrix", description=__doc__)
    parser.add_argument("methods", nargs="*", help="only the specs in which these methods are")
    parser.add_argument("--families", default="", help="only these families, with commas between")
    arguments = parser.parse_args()
    main(arguments.methods, [name for name in arguments.families.split(",") if name])
