"""PET (pattern-exploiting training) from 10, 50 and 100 labels, compared with a trained head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import Experiment
from bench.claims.plots import curves
from inlay import LoRA
from inlay.data.dataset import Example
from inlay.data.loading import load
from inlay.tasks import Classify, TrainedHead
from inlay.training import PetRecipe, PetResult, pet
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
    """Accuracy on held-out rows of a head, of PET and of iPET, by the number of labels.

    The head learns from the labels in as many steps as PET's classifier from the patterns'
    predictions. iPET starts from the smallest number of labels.
    """
    settings, experiment, numbers = run.settings, Experiment(run), Numbers()
    folder = run.folder(settings["set"])
    test = load(folder, split="test", limit=settings["test"])
    classes, sizes = len(settings["verbalizer"]), settings["sizes"]
    labelled = {size: _balanced(folder, size, classes, run.seed) for size in sizes}
    for size, rows in labelled.items():
        task = experiment.bind(Classify(by=TrainedHead(tuple(settings["verbalizer"]))))
        spec = LoRA(rank=settings["rank"]) + task.head()
        handle = experiment.fit(f"a head, {size} labels", spec, task, rows)
        numbers[f"head_{size}"] = experiment.score(task, test)
        handle.detach()
    for size, rows in labelled.items():
        run.show(f"PET, {size} labels")
        numbers |= _numbers(size, _train(run, rows))
    run.show(f"iPET, {sizes[0]} labels")
    result = _train(run, labelled[sizes[0]], generations=settings["generations"])
    assert result.test is not None
    numbers["ipet"] = result.test["accuracy"]
    for number, generation in enumerate(result.generations, 1):
        assert generation.ensemble is not None
        numbers[f"generation_{number}"] = generation.ensemble["accuracy"]
    for kind in ("head", "pet"):
        numbers[kind] = fmean(numbers[f"{kind}_{size}"] for size in sizes)
    return numbers


def _balanced(folder: Path, size: int, classes: int, seed: int) -> list[Example]:
    """`size` rows, with as nearly the same number of each label as possible."""
    rows = load(folder, split="train", shots=-(-size // classes), seed=seed)
    by_label: dict[Any, list[Example]] = {}
    for row in rows:
        by_label.setdefault(row.fields["label"], []).append(row)
    turns = chain.from_iterable(zip_longest(*(by_label[label] for label in sorted(by_label))))
    return [row for row in turns if row is not None][:size]


def _numbers(size: int, result: PetResult) -> Numbers:
    """The accuracy of the classifier and of the patterns' ensemble, and the patterns' spread.

    Before training the number of labels does not matter, so these numbers do not carry it.
    """
    ensemble = result.generations[-1].ensemble
    assert result.test is not None
    assert ensemble is not None
    numbers = {f"pet_{size}": result.test["accuracy"], f"together_{size}": ensemble["accuracy"]}
    for stage, spread in result.spread.items():
        prefix = stage if stage == "untouched" else f"{stage}_{size}"
        numbers |= {f"{prefix}_{name}": spread[name] for name in ("mean", "least", "most")}
    return numbers


def _train(run: Run, rows: Sequence[Example], generations: int = 1) -> PetResult:
    """Run PET on some labelled rows, in a folder that is deleted afterwards."""
    settings = run.settings
    folder = str(run.folder(settings["set"]))
    patterns_file = {name: settings[name] for name in ("patterns", "verbalizer")}
    with TemporaryDirectory() as out:
        patterns, train = Path(out) / "patterns.yaml", Path(out) / "train.jsonl"
        patterns.write_text(yaml.write(json.loads(json.dumps(patterns_file))), encoding="utf-8")
        train.write_text("".join(json.dumps(row.fields) + "\n" for row in rows), encoding="utf-8")
        sampling = {"limit": settings["unlabelled"], "seed": run.seed + 1000}
        recipe = PetRecipe.model_validate(
            {
                "base": settings["base"],
                "dtype": settings["dtype"],
                "method": f"LoRA(rank={settings['rank']})",
                "patterns": str(patterns),
                "data": {
                    "train": {"source": str(train)},
                    "unlabelled": {"source": folder, "split": "train", **sampling},
                    "test": {"source": folder, "split": "test", "limit": settings["test"]},
                },
                "training": {
                    "lr": settings["lr"],
                    "steps": settings["pattern_steps"],
                    "batch_size": settings["pattern_batch_size"],
                },
                "distil": {
                    "lr": settings["lr"],
                    "steps": settings["steps"],
                    "batch_size": settings["batch_size"],
                },
                "generations": generations,
                "growth": settings["growth"],
                "out": out,
                "seed": run.seed,
            }
        )
        return pet(recipe, run.console)


REPORTED = {
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
    minutes=15,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["pet"] - n["head"],
    reported=REPORTED,
    plot=curves(
        "labels",
        SIZES,
        logarithmic=True,
        head_="a trained head",
        pet_="PET's classifier",
        together_="its patterns together",
    ),
    data=("sst2",),
    tried=(
        "the rate is the better of two on seed 0 with 50 labels and 60 test rows: a pattern after "
        "25 steps 1e-3 0.783, 3e-3 0.833; a head after 30 steps 0.600, 0.650",
    ),
)
