"""Pattern-exploiting training with 10, 50 and 100 labels, against a trained head on the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from bench.claims.base import Claim, Numbers, Run, curves
from bench.claims.setting import Bench
from inlay import LoRA
from inlay.data import Example, load
from inlay.tasks import Classify
from inlay.training import Pet, Petted, pet, text

SIZES = (10, 50, 100)

SETS = {
    "sst2": {
        "patterns": (
            "{text} All in all, it was {mask}",
            "{text} It was {mask}",
            "Review: {text}\nThe film is {mask}",
        ),
        "verbalizer": {"negative": (" bad", " terrible"), "positive": (" good", " great")},
    },
    "trec": {
        "patterns": (
            "{text} This question asks for a {mask}",
            "Question: {text}\nThe answer is a {mask}",
            "{text} To answer it, name a {mask}",
        ),
        "verbalizer": {
            "ABBR": (" short", " full"),
            "DESC": (" description", " reason"),
            "ENTY": " thing",
            "HUM": " person",
            "LOC": " place",
            "NUM": " number",
        },
    },
}

SETTINGS = {
    "base": "smollm2",
    "dtype": "bfloat16",
    "rank": 8,
    "sets": SETS,
    "sizes": SIZES,
    "pattern_steps": 20,
    "pattern_batch_size": 4,
    "generations": 3,
    "growth": 4,
    "steps": 30,
    "batch_size": 8,
    "lr": 3e-3,
    "unlabelled": 160,
    "test": 100,
}


def measure(run: Run) -> Numbers:
    """Accuracy on held-out rows of what learned from so many labels, spread evenly over them.

    A trained head learns in as many steps from the labels as PET's classifier from the soft ones.
    iPET begins with as few labels as there are.
    """
    s = run.settings
    found: Numbers = {}
    for name in s["sets"]:
        bench = Bench(run)
        folder = run.folder(name)
        test = load(folder, split="test", limit=s["test"])
        few = {size: _few(folder, size, run.seed) for size in s["sizes"]}
        for size, rows in few.items():
            task = bench.bind(Classify(labels=tuple(s["sets"][name]["verbalizer"])))
            spec = LoRA(rank=s["rank"]) + task.head()
            handle = bench.teach(f"{name}: a head, {size} labels", spec, task, rows)
            found[f"{name}_head_{size}"] = bench.score(task, test)
            handle.detach()
        for size, rows in few.items():
            run.say(f"{name}: PET, {size} labels")
            found |= _told(f"{name}_", f"_{size}", _petted(run, name, rows))
        run.say(f"{name}: iPET, {s['sizes'][0]} labels")
        made = _petted(run, name, few[s["sizes"][0]], generations=s["generations"])
        assert made.test is not None
        found[f"{name}_ipet"] = made.test["accuracy"]
        for number, generation in enumerate(made.generations, 1):
            assert generation.ensemble is not None
            found[f"{name}_generation_{number}"] = generation.ensemble["accuracy"]
    for kind in ("head", "pet"):
        found[kind] = fmean(found[f"{n}_{kind}_{size}"] for n in s["sets"] for size in s["sizes"])
    return found


def _few(folder: Path, size: int, seed: int) -> list[Example]:
    """So many rows, as evenly over the labels as can be."""
    rows = load(folder, split="train", shots=size, seed=seed)
    apart: dict[Any, list[Example]] = {}
    for row in rows:
        apart.setdefault(row.fields["label"], []).append(row)
    turns = chain.from_iterable(zip_longest(*(apart[label] for label in sorted(apart))))
    return [row for row in turns if row is not None][:size]


def _told(before: str, behind: str, made: Petted) -> Numbers:
    """The classifier's accuracy, its patterns' together, and the spread between patterns.

    Before training the labels do not matter, so neither does their number.
    """
    together = made.generations[-1].ensemble
    assert made.test is not None
    assert together is not None
    found = {
        f"{before}pet{behind}": made.test["accuracy"],
        f"{before}together{behind}": together["accuracy"],
    }
    for when, spread in made.spread.items():
        for name in ("mean", "least", "most"):
            of = "" if when == "untouched" else behind
            found[f"{before}{when}_{name}{of}"] = spread[name]
    return found


def _petted(run: Run, name: str, few: Sequence[Example], generations: int = 1) -> Petted:
    s, folder = run.settings, str(run.folder(name))
    own: Mapping[str, Any] = s["sets"][name]
    with TemporaryDirectory() as out:
        patterns, train = Path(out) / "patterns.yaml", Path(out) / "train.jsonl"
        patterns.write_text(text.write(json.loads(json.dumps(own))), encoding="utf-8")
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


def _named(name: str, told: str) -> dict[str, str]:
    """The numbers of one data set that are worth a line."""
    return {
        f"{name}_untouched_mean": f"{told}: accuracy of a pattern without labels",
        f"{name}_untouched_least": "the worst one",
        f"{name}_untouched_most": "the best",
        **{f"{name}_head_{size}": f"a head, {size} labels" for size in SIZES},
        **{f"{name}_pet_{size}": f"PET, {size} labels" for size in SIZES},
        f"{name}_trained_least_{SIZES[0]}": f"the worst pattern, {SIZES[0]} labels",
        f"{name}_trained_most_{SIZES[0]}": "the best",
        f"{name}_generation_1": f"iPET from {SIZES[0]} labels, its patterns together: first",
        f"{name}_generation_2": "second",
        f"{name}_generation_3": "third generation",
        f"{name}_ipet": "its classifier",
    }


CLAIM = Claim(
    name="pet",
    paper="Schick & Schütze, EACL 2021",
    section="4",
    sentence="With few labels, patterns and unlabelled text do better than a classifier on labels.",
    figures="tables for 0 to 1,000 labels of Yelp, AG's, Yahoo and MNLI, not checked here "
    "(RoBERTa-large, all weights)",
    sized=30,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["pet"] - n["head"],
    told={**_named("sst2", "SST-2"), **_named("trec", "TREC")},
    plot=curves(
        "labels",
        SIZES,
        logarithmic=True,
        sst2_head_="SST-2, a trained head",
        sst2_pet_="SST-2, PET",
        trec_head_="TREC, a trained head",
        trec_pet_="TREC, PET",
    ),
    needs=tuple(SETS),
    tried=(
        "the rate is the better of two on SST-2, seed 0, with 50 labels and 60 test rows: a "
        "pattern after 25 steps 1e-3 0.783, 3e-3 0.833; a head after 30 steps 0.600, 0.650",
    ),
)
