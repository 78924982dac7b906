"""The table of speed and memory in README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.docs.markdown import table

RESULTS = Path("bench") / "results.json"


def section(root: Path) -> str:
    """What `make bench` stored, or that it has not run."""
    path = root / RESULTS
    if not path.exists():
        return f"Not measured in this copy: `make bench` measures and writes `{RESULTS}`.\n"
    return measured(json.loads(path.read_text("utf-8")))


def measured(results: Mapping[str, Any]) -> str:
    """Where the benchmarks ran, and a line for each comparison."""
    machine, runs = results["machine"], results["runs"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "peft"))
    when = f"on {runs[-1]}" if len(runs) == 1 else f"in {len(runs)} runs, the last on {runs[-1]}"
    where = (
        "SmolLM2-135M in bf16, or in fp32 if a row says so, as a processor without bf16 products "
        f"runs it; measured by `make bench` on {machine['cores']} cores ({machine['device']}) with "
        f"{versions} {when}{', quickly' if results['quick'] else ''}. "
        "A ratio is the median over rounds in which both took turns.\n\n"
    )
    head = ["what", "compared with", "inlay", "the other", "unit", "ratio", "goal"]
    rows = [
        [
            row["what"],
            row["baseline"],
            f"{row['ours']:.4g}",
            f"{row['other']:.4g}",
            row["unit"],
            f"{row['ratio']:.2f}",
            _goal(row),
        ]
        for row in results["rows"]
    ]
    return where + table(head, rows, numbers=("inlay", "the other", "ratio", "goal"))


def _goal(row: Mapping[str, Any]) -> str:
    if row["at_most"] is not None:
        return f"≤ {row['at_most']:.2f}"
    return "" if row["at_least"] is None else f"≥ {row['at_least']:.2f}"
