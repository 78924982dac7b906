"""What was measured: one JSON file and one plot a claim."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bench.base import machine
from bench.claims.claim import Claim, Numbers, held
from inlay.errors import DataError

FOLDER = Path(__file__).parent / "results"


def read(name: str) -> dict[str, Any] | None:
    """The stored results of a claim, None without any. Raises DataError for a damaged file."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: {error}; delete the file and measure again") from None


def seeds_of(claim: Claim) -> dict[int, Numbers]:
    """The stored numbers by seed; none if they were measured with other settings."""
    stored = read(claim.name)
    if stored is None or stored["settings"] != _as_json(claim.settings):
        return {}
    return {int(seed): numbers for seed, numbers in stored["seeds"].items()}


def store(claim: Claim, seeds: Mapping[int, Numbers], minutes: float) -> dict[str, Any]:
    """Write the JSON file, and return its content. minutes: what the last seed took."""
    numbers = [seeds[seed] for seed in sorted(seeds)]
    margins = [claim.margin(of_seed) for of_seed in numbers]
    content = {
        "claim": claim.name,
        "paper": claim.paper,
        "section": claim.section,
        "sentence": claim.sentence,
        "figures": claim.figures,
        "held": held(margins),
        "margins": [round(margin, 5) for margin in margins],
        "reported": dict(claim.reported),
        "mean": {name: round(fmean(n[name] for n in numbers), 5) for name in numbers[0]},
        "sd": {name: _sd([n[name] for n in numbers]) for name in numbers[0]},
        "seeds": {str(seed): seeds[seed] for seed in sorted(seeds)},
        "settings": _as_json(claim.settings),
        "tried": list(claim.tried),
        "minutes_per_seed": round(minutes, 2),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(("torch", "transformers")),
    }
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (FOLDER / f"{claim.name}.json").write_text(text, encoding="utf-8")
    return content


def draw(claim: Claim, seeds: Mapping[int, Numbers]) -> Path:
    """Write the plot, and return its path. Raises DataError if matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise DataError("plots need matplotlib; pip install 'inlay[bench]'") from None
    matplotlib.use("svg")
    from matplotlib import pyplot

    path = FOLDER / f"{claim.name}.svg"
    with pyplot.rc_context({"svg.hashsalt": claim.name, "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
        claim.plot(axes, [seeds[seed] for seed in sorted(seeds)])
        axes.set_title(claim.name)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
    return path


def summary(stored: Mapping[str, Any]) -> str:
    """The reported numbers on one line: what each is, its mean and standard deviation."""
    return ", ".join(
        f"{label} {stored['mean'][name]:.3g} ± {stored['sd'][name]:.2g}"
        for name, label in stored["reported"].items()
    )


def _sd(values: list[float]) -> float:
    return round(stdev(values), 5) if len(values) > 1 else 0.0


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as JSON reads them back, with lists for tuples."""
    return json.loads(json.dumps(dict(settings)))
