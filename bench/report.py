"""What was measured, as rows of a table and as JSON."""

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

    what: of which thing. beside: what it is compared with. rounds: ours and the other's in each
    round, in `unit`. at_most, at_least: what the ratio should be; neither for a number that is only
    told.
    """

    what: str
    beside: str
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
        """The median of the other's."""
        return median(other for _, other in self.rounds)

    @property
    def ratios(self) -> list[float]:
        """Ours over the other's in each round, from the least to the most."""
        return sorted(ours / other for ours, other in self.rounds)

    @property
    def ratio(self) -> float:
        """The middle one of the ratios."""
        return median(self.ratios)

    @property
    def target(self) -> str:
        """The target as text."""
        if self.at_most is not None:
            return f"≤ {self.at_most:.2f}"
        return "" if self.at_least is None else f"≥ {self.at_least:.2f}"

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.at_most is not None:
            return self.ratio <= self.at_most
        return None if self.at_least is None else self.ratio >= self.at_least

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same comparison in another run."""
        return self.what, self.beside, self.unit


def timed(
    what: str, times: Times, ours: str, other: str, beside: str, at_most: float | None = None
) -> Row:
    """A row of seconds: less is better."""
    return Row(what, beside, "s", times.pairs(ours, other), at_most=at_most)


def rated(
    what: str,
    times: Times,
    ours: str,
    other: str,
    beside: str,
    unit: str,
    amount: float,
    at_least: float | None = None,
) -> Row:
    """A row of `amount` per second: more is better."""
    rounds = tuple((amount / a, amount / b) for a, b in times.pairs(ours, other))
    return Row(what, beside, unit, rounds, at_least=at_least)


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the table."""
    table = Table(title="inlay, measured")
    for name in ("what", "ours", "beside", "theirs", "unit", "ratio", "range", "target", "met"):
        left = name in ("what", "beside", "unit")
        table.add_column(name, justify="left" if left else "right")
    marks = {True: "[green]yes", False: "[red]no", None: ""}
    for row in rows:
        span = f"{row.ratios[0]:.2f}–{row.ratios[-1]:.2f}" if len(row.rounds) > 1 else ""
        numbers = (f"{row.ours:.4g}", row.beside, f"{row.other:.4g}", row.unit)
        table.add_row(row.what, *numbers, f"{row.ratio:.3f}", span, row.target, marks[row.met])
    console.print(table)


def write(runs: Sequence[str], rows: Sequence[Row], quick: bool, path: Path = RESULTS) -> None:
    """Write the JSON file. runs: the day of each run whose rounds stand in the rows."""
    made = {
        "runs": list(runs),
        "quick": quick,
        "machine": machine(),
        "rows": [_told(row) for row in rows],
    }
    path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _told(row: Row) -> dict[str, Any]:
    numbers = {"ours": row.ours, "other": row.other, "ratio": row.ratio}
    ends = {"low": row.ratios[0], "high": row.ratios[-1]}
    return {**asdict(row), **numbers, **ends, "met": row.met}


def today() -> str:
    """The date, in UTC."""
    return datetime.now(UTC).date().isoformat()


def read(path: Path, quick: bool) -> tuple[list[str], list[Row]]:
    """The days and rows of the runs that were stored, if they were made as one would be now.

    Raises SystemExit where they were made on another machine or in another way: their rounds and
    new ones are not of one kind.
    """
    if not path.exists():
        return [], []
    stored = json.loads(path.read_text("utf-8"))
    if (stored["machine"], stored["quick"]) != (machine(), quick):
        raise SystemExit(f"{path} was measured on another machine or in another way: begin anew")
    rows = [Row(**{each.name: row[each.name] for each in fields(Row)}) for row in stored["rows"]]
    return stored["runs"], rows


def pooled(before: Sequence[Row], now: Sequence[Row]) -> list[Row]:
    """All rows, those of one comparison with the rounds of both."""
    made = {row.key: row for row in before}
    for row in now:
        old = made.get(row.key)
        rounds = (*old.rounds, *row.rounds) if old is not None else row.rounds
        made[row.key] = replace(row, rounds=rounds)
    return list(made.values())
