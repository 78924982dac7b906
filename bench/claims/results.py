"""What was measured: one JSON file and one plot per claim."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bench.base import machine
from bench.claims.base import Claim, Numbers, held
from inlay.errors import DataError

FOLDER = Path(__file__).parent / "results"


def read(name: str) -> dict[str, Any] | None:
    """The stored results of a claim, None where there are none. Raises DataError."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: {error}; remove it or measure anew") from None


def seeds_of(claim: Claim) -> dict[int, Numbers]:
    """The stored numbers by seed, if they were measured with the settings of today."""
    stored = read(claim.name)
    if stored is None or stored["settings"] != _plain(claim.settings):
        return {}
    return {int(seed): numbers for seed, numbers in stored["seeds"].items()}


def store(claim: Claim, seeds: Mapping[int, Numbers], minutes: float) -> dict[str, Any]:
    """Write the JSON file; returns what it says. minutes: what the last seed took."""
    numbers = [seeds[seed] for seed in sorted(seeds)]
    margins = [claim.margin(one) for one in numbers]
    made = {
        "claim": claim.name,
        "paper": claim.paper,
        "section": claim.section,
        "sentence": claim.sentence,
        "figures": claim.figures,
        "held": held(margins),
        "margins": [round(margin, 5) for margin in margins],
        "told": dict(claim.told),
        "mean": {name: round(fmean(one[name] for one in numbers), 5) for name in numbers[0]},
        "sd": {name: _sd([one[name] for one in numbers]) for name in numbers[0]},
        "seeds": {str(seed): seeds[seed] for seed in sorted(seeds)},
        "settings": _plain(claim.settings),
        "tried": list(claim.tried),
        "minutes_per_seed": round(minutes, 2),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(("torch", "transformers")),
    }
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
    (FOLDER / f"{claim.name}.json").write_text(text, encoding="utf-8")
    return made


def draw(claim: Claim, seeds: Mapping[int, Numbers]) -> Path:
    """Write the plot; returns its path. Raises DataError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise DataError("a plot needs matplotlib: pip install 'inlay[bench]'") from None
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


def told(stored: Mapping[str, Any]) -> str:
    """The numbers worth a line: what each is, its mean and its standard deviation."""
    return ", ".join(
        f"{what} {stored['mean'][name]:.3g} ± {stored['sd'][name]:.2g}"
        for name, what in stored["told"].items()
    )


def _sd(values: list[float]) -> float:
    return round(stdev(values), 5) if len(values) > 1 else 0.0


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps(dict(settings)))
