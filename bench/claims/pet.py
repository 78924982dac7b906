"""Pattern-exploiting training with 10, 50 and 100 labels, against a trained head on the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from bench.claims.base import Claim, Numbers, Run, curves
from bench.claims.setting import Bench
from inlay import LoRA
from inlay.data.dataset import Example
from inlay.data.loading import load
from inlay.tasks import Classify
from inlay.training import Pet, Petted, pet
from inlay.training.recipes import yaml

SIZES = (10, 50, 100)

SETTINGS = {
    "base": "smollm2",
    "dtype": "bfloat16",
    "rank": 8,
    "set": "sst2",
    "patterns": (
        "{text} All in all, it was {mask}",
        "{text} It was {mask}",
        "Review: {text}\nThe film is {mask}",
    ),
    "verbalizer": {"negative": (" bad", " terrible"), "positive": (" good", " great")},
    "sizes": SIZES,
    "pattern_steps": 20,
    "pattern_batch_size": 4,
    "generations": 3,
    "growth": 3,
    "steps": 30,
    "batch_size": 8,
    "lr": 3e-3,
    "unlabelled": 100,
    "test": 100,
}


def measure(run: Run) -> Numbers:
    """Accuracy on held-out rows of what learned from so many labels, spread evenly over them.

    A trained head learns in as many steps from the labels as PET's classifier from the soft ones.
    iPET begins with as few labels as there are.
    """
    s, bench, found = run.settings, Bench(run), Numbers()
    folder = run.folder(s["set"])
    test = load(folder, split="test", limit=s["test"])
    few = {size: _few(folder, size, len(s["verbalizer"]), run.seed) for size in s["sizes"]}
    for size, rows in few.items():
        task = bench.bind(Classify(labels=tuple(s["verbalizer"])))
        spec = LoRA(rank=s["rank"]) + task.head()
        handle = bench.teach(f"a head, {size} labels", spec, task, rows)
        found[f"head_{size}"] = bench.score(task, test)
        handle.detach()
    for size, rows in few.items():
        run.say(f"PET, {size} labels")
        found |= _told(size, _petted(run, rows))
    run.say(f"iPET, {s['sizes'][0]} labels")
    made = _petted(run, few[s["sizes"][0]], generations=s["generations"])
    assert made.test is not None
    found["ipet"] = made.test["accuracy"]
    for number, generation in enumerate(made.generations, 1):
        assert generation.ensemble is not None
        found[f"generation_{number}"] = generation.ensemble["accuracy"]
    for kind in ("head", "pet"):
        found[kind] = fmean(found[f"{kind}_{size}"] for size in s["sizes"])
    return found


def _few(folder: Path, size: int, labels: int, seed: int) -> list[Example]:
    """So many rows, as evenly over the labels as can be."""
    rows = load(folder, split="train", shots=-(-size // labels), seed=seed)
    apart: dict[Any, list[Example]] = {}
    for row in rows:
        apart.setdefault(row.fields["label"], []).append(row)
    turns = chain.from_iterable(zip_longest(*(apart[label] for label in sorted(apart))))
    return [row for row in turns if row is not None][:size]


def _told(size: int, made: Petted) -> Numbers:
    """The classifier's accuracy, its patterns' together, and the spread between patterns.

    Before training the labels do not matter, so neither does their number.
    """
    together = made.generations[-1].ensemble
    assert made.test is not None
    assert together is not None
    found = {f"pet_{size}": made.test["accuracy"], f"together_{size}": together["accuracy"]}
    for when, spread in made.spread.items():
        for name in ("mean", "least", "most"):
            of = when if when == "untouched" else f"{when}_{size}"
            found[f"{of}_{name}"] = spread[name]
    return found


def _petted(run: Run, few: Sequence[Example], generations: int = 1) -> Petted:
    s = run.settings
    folder = str(run.folder(s["set"]))
    own = {name: s[name] for name in ("patterns", "verbalizer")}
    with TemporaryDirectory() as out:
        patterns, train = Path(out) / "patterns.yaml", Path(out) / "train.jsonl"
        patterns.write_text(yaml.write(json.loads(json.dumps(own))), encoding="utf-8")
        train.write_text("".join(json.dumps(row.fields) + "\n" for row in few), encoding="utf-8")
        drawn = {"limit": s["unlabelled"], "seed": run.seed + 1000}
        recipe = Pet.model_validate(
            {
                "base": s["base"],
                "dtype": s["dtype"],
                "method": f"LoRA(rank={s['rank']})",
                "patterns": str(patterns),
                "data": {
                    "train": {"source": str(train)},
                    "unlabelled": {"source": folder, "split": "train", **drawn},
                    "test": {"source": folder, "split": "test", "limit": s["test"]},
                },
                "training": {
                    "lr": s["lr"],
                    "steps": s["pattern_steps"],
                    "batch_size": s["pattern_batch_size"],
                },
                "distil": {"lr": s["lr"], "steps": s["steps"], "batch_size": s["batch_size"]},
                "generations": generations,
                "growth": s["growth"],
                "out": out,
                "seed": run.seed,
            }
        )
        return pet(recipe, run.console)


TOLD = {
    "untouched_mean": "accuracy of a pattern without labels",
    "untouched_least": "the worst one",
    "untouched_most": "the best",
    **{f"head_{size}": f"a head, {size} labels" for size in SIZES},
    **{f"pet_{size}": f"PET's classifier, {size} labels" for size in SIZES},
    **{f"together_{size}": f"its patterns together, {size} labels" for size in SIZES},
    f"trained_{SIZES[0]}_least": f"the worst of PET's patterns, {SIZES[0]} labels",
    f"trained_{SIZES[0]}_most": "the best",
    "generation_1": f"iPET from {SIZES[0]} labels, its patterns together: first",
    "generation_2": "second",
    "generation_3": "third generation",
    "ipet": "its classifier",
}


CLAIM = Claim(
    name="pet",
    paper="Schick & Schütze, EACL 2021",
    section="4",
    sentence="With few labels, patterns and unlabelled text do better than a classifier on labels "
    "(SST-2).",
    figures="tables for 0 to 1,000 labels of Yelp, AG's, Yahoo and MNLI, not checked here "
    "(RoBERTa-large, all weights)",
    sized=15,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["pet"] - n["head"],
    told=TOLD,
    plot=curves(
        "labels",
        SIZES,
        logarithmic=True,
        head_="a trained head",
        pet_="PET's classifier",
        together_="its patterns together",
    ),
    needs=("sst2",),
    tried=(
        "the rate is the better of two on seed 0 with 50 labels and 60 test rows: a pattern after "
        "25 steps 1e-3 0.783, 3e-3 0.833; a head after 30 steps 0.600, 0.650",
    ),
)
