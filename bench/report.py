"""Comparisons, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.base import machine
from bench.timing import Times

RESULTS = Path(__file__).parent / "results.json"


@dataclass(frozen=True)
class Row:
    """One comparison.

    what: what is measured. baseline: what it is compared with. rounds: (ours, the baseline's) of
    each round, in `unit`. at_most, at_least: the target of the ratio; None without a target.
    """

    what: str
    baseline: str
    unit: str
    rounds: tuple[tuple[float, float], ...]
    at_most: float | None = None
    at_least: float | None = None

    @property
    def ours(self) -> float:
        """The median of ours."""
        return median(ours for ours, _ in self.rounds)

    @property
    def other(self) -> float:
        """The median of the baseline's."""
        return median(other for _, other in self.rounds)

    @property
    def ratios(self) -> list[float]:
        """Ours divided by the baseline's in each round, in ascending order."""
        return sorted(ours / other for ours, other in self.rounds)

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return median(self.ratios)

    @property
    def target(self) -> str:
        """The target as text."""
        if self.at_most is not None:
            return f"≤ {self.at_most:.2f}"
        return "" if self.at_least is None else f"≥ {self.at_least:.2f}"

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.at_most is not None:
            return self.ratio <= self.at_most
        return None if self.at_least is None else self.ratio >= self.at_least

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the comparison in another run."""
        return self.what, self.baseline, self.unit


def timed(
    what: str, times: Times, ours: str, other: str, baseline: str, at_most: float | None = None
) -> Row:
    """A row of seconds: less is better. ours, other: the names of the times."""
    return Row(what, baseline, "s", times.pairs(ours, other), at_most=at_most)


def rated(
    what: str,
    times: Times,
    ours: str,
    other: str,
    baseline: str,
    unit: str,
    amount: float,
    at_least: float | None = None,
) -> Row:
    """A row of `amount` per second: more is better. ours, other: the names of the times."""
    rounds = tuple((amount / a, amount / b) for a, b in times.pairs(ours, other))
    return Row(what, baseline, unit, rounds, at_least=at_least)


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the table."""
    table = Table(title="inlay, measured")
    for name in (
        "what",
        "inlay",
        "compared with",
        "the other",
        "unit",
        "ratio",
        "range",
        "target",
        "met",
    ):
        left = name in ("what", "compared with", "unit")
        table.add_column(name, justify="left" if left else "right")
    marks = {True: "[green]yes", False: "[red]no", None: ""}
    for row in rows:
        span = f"{row.ratios[0]:.2f}–{row.ratios[-1]:.2f}" if len(row.rounds) > 1 else ""
        numbers = (f"{row.ours:.4g}", row.baseline, f"{row.other:.4g}", row.unit)
        table.add_row(row.what, *numbers, f"{row.ratio:.3f}", span, row.target, marks[row.met])
    console.print(table)


def write(runs: Sequence[str], rows: Sequence[Row], quick: bool, path: Path = RESULTS) -> None:
    """Write the JSON file. runs: the date of each run whose rounds the rows hold."""
    content = {
        "runs": list(runs),
        "quick": quick,
        "machine": machine(),
        "rows": [_as_json(row) for row in rows],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _as_json(row: Row) -> dict[str, Any]:
    numbers = {"ours": row.ours, "other": row.other, "ratio": row.ratio}
    ends = {"low": row.ratios[0], "high": row.ratios[-1]}
    return {**asdict(row), **numbers, **ends, "met": row.met}


def today() -> str:
    """The date, in UTC."""
    return datetime.now(UTC).date().isoformat()


def read(path: Path, quick: bool) -> tuple[list[str], list[Row]]:
    """The dates and rows of the stored runs.

    Raises SystemExit if they were measured on another machine or in another way, because their
    rounds cannot be pooled with new ones.
    """
    if not path.exists():
        return [], []
    stored = json.loads(path.read_text("utf-8"))
    if (stored["machine"], stored["quick"]) != (machine(), quick):
        raise SystemExit(
            f"{path} was measured on another machine or in another way; leave --add out"
        )
    names = [field.name for field in fields(Row)]
    rows = [Row(**{name: row[name] for name in names}) for row in stored["rows"]]
    return stored["runs"], rows


def pooled(before: Sequence[Row], now: Sequence[Row]) -> list[Row]:
    """All rows; a comparison that both have gets the rounds of both."""
    rows = {row.key: row for row in before}
    for row in now:
        old = rows.get(row.key)
        rounds = (*old.rounds, *row.rounds) if old is not None else row.rounds
        rows[row.key] = replace(row, rounds=rounds)
    return list(rows.values())
