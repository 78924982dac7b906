"""What was measured, as rows of a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.base import machine
from bench.timing import Ratio, Times

RESULTS = Path(__file__).parent / "results.json"


@dataclass(frozen=True)
class Row:
    """One comparison.

    what: of which thing. beside: what it is compared with. ours, other: medians in `unit`. ratio:
    ours over theirs, the median of what was seen round by round, from `low` to `high`. at_most,
    at_least: what the ratio should be; neither for a number that is only told.
    """

    what: str
    beside: str
    unit: str
    ours: float
    other: float
    ratio: float
    low: float
    high: float
    at_most: float | None = None
    at_least: float | None = None

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


def timed(
    what: str, times: Times, ours: str, other: str, beside: str, at_most: float | None = None
) -> Row:
    """A row of seconds: less is better."""
    seen = times.ratio(ours, other)
    pair = (times.median(ours), times.median(other))
    return Row(what, beside, "s", *pair, seen.value, seen.low, seen.high, at_most=at_most)


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
    seen = times.ratio(other, ours)
    pair = (amount / times.median(ours), amount / times.median(other))
    return Row(what, beside, unit, *pair, seen.value, seen.low, seen.high, at_least=at_least)


def single(
    what: str, beside: str, unit: str, ours: float, other: float, at_most: float | None = None
) -> Row:
    """A row of one exact number each."""
    seen = Ratio(ours / other, ours / other, ours / other)
    return Row(what, beside, unit, ours, other, seen.value, seen.low, seen.high, at_most=at_most)


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the table."""
    table = Table(title="inlay, measured")
    for name in ("what", "ours", "beside", "theirs", "unit", "ratio", "range", "target", "met"):
        left = name in ("what", "beside", "unit")
        table.add_column(name, justify="left" if left else "right")
    marks = {True: "[green]yes", False: "[red]no", None: ""}
    for row in rows:
        span = "" if row.low == row.high else f"{row.low:.2f}–{row.high:.2f}"
        numbers = (f"{row.ours:.4g}", row.beside, f"{row.other:.4g}", row.unit)
        table.add_row(row.what, *numbers, f"{row.ratio:.3f}", span, row.target, marks[row.met])
    console.print(table)


def write(rows: Sequence[Row], quick: bool, path: Path = RESULTS) -> None:
    """Write the JSON file."""
    made = {
        "date": datetime.now(UTC).date().isoformat(),
        "quick": quick,
        "machine": machine(),
        "rows": [{**asdict(row), "met": row.met} for row in rows],
    }
    path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
