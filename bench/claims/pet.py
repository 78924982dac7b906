"""Pattern-exploiting training with 10, 50 and 100 labels, against a trained head on the same."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from bench.claims.base import Claim, Numbers, Run, curves
from bench.claims.setting import LABELS, Bench
from inlay import LoRA
from inlay.data import load
from inlay.tasks import Classify
from inlay.training import Pet, Petted, pet, text

SIZES = (10, 50, 100)

SETTINGS = {
    "base": "smollm2",
    "dtype": "bfloat16",
    "rank": 8,
    "patterns": (
        "{text} All in all, it was {mask}",
        "{text} It was {mask}",
        "Review: {text}\nThe film is {mask}",
    ),
    "verbalizer": {"negative": (" bad", " terrible"), "positive": (" good", " great")},
    "sizes": SIZES,
    "pattern_steps": 20,
    "pattern_batch_size": 4,
    "steps": 30,
    "batch_size": 8,
    "lr": 3e-3,
    "unlabelled": 160,
    "test": 120,
}


def measure(run: Run) -> Numbers:
    """Accuracy on held-out sentences of what learned from so many labels, half of each.

    A trained head learns in as many steps from the labels as PET's classifier from the soft ones.
    """
    s = run.settings
    folder = run.folder("sst2")
    bench = Bench(run)
    test = load(folder, split="test", limit=s["test"])
    found: Numbers = {}
    for size in s["sizes"]:
        task = bench.bind(Classify(labels=LABELS))
        rows = load(folder, split="train", shots=size // 2, seed=run.seed)
        spec = LoRA(rank=s["rank"]) + task.head()
        handle = bench.teach(f"a head, {size} labels", spec, task, rows)
        found[f"head_{size}"] = bench.score(task, test)
        handle.detach()
    for size in s["sizes"]:
        run.say(f"PET, {size} labels")
        made = _petted(run, folder, size)
        together = made.generations[-1].ensemble
        assert made.test is not None
        assert together is not None
        found[f"pet_{size}"] = made.test["accuracy"]
        found[f"together_{size}"] = together["accuracy"]
        for when, spread in made.spread.items():
            for name in ("mean", "least", "most"):
                # Before training the labels do not matter, so neither does their number.
                of = when if when == "untouched" else f"{when}_{size}"
                found[f"{of}_{name}"] = spread[name]
    for name in ("head", "pet", "together"):
        found[name] = fmean(found[f"{name}_{size}"] for size in s["sizes"])
    return found


def _petted(run: Run, folder: Path, size: int) -> Petted:
    s = run.settings
    train = {"source": str(folder), "split": "train"}
    with TemporaryDirectory() as out:
        patterns = Path(out) / "patterns.yaml"
        words = {label: list(own) for label, own in s["verbalizer"].items()}
        asked = {"patterns": list(s["patterns"]), "verbalizer": words}
        patterns.write_text(text.write(asked), encoding="utf-8")
        few = {**train, "shots": size // 2, "seed": run.seed}
        many = {**train, "limit": s["unlabelled"], "seed": run.seed + 1000}
        tests = {"source": str(folder), "split": "test", "limit": s["test"]}
        recipe = Pet.model_validate(
            {
                "base": s["base"],
                "dtype": s["dtype"],
                "method": f"LoRA(rank={s['rank']})",
                "patterns": str(patterns),
                "data": {"train": few, "unlabelled": many, "test": tests},
                "training": {
                    "lr": s["lr"],
                    "steps": s["pattern_steps"],
                    "batch_size": s["pattern_batch_size"],
                },
                "distil": {"lr": s["lr"], "steps": s["steps"], "batch_size": s["batch_size"]},
                "out": out,
                "seed": run.seed,
            }
        )
        return pet(recipe, run.console)


CLAIM = Claim(
    name="pet",
    paper="Schick & Schütze, EACL 2021",
    section="4",
    sentence="With few labels, patterns and unlabelled text do better than a classifier on labels.",
    figures="tables for 0 to 1,000 labels of Yelp, AG's, Yahoo and MNLI, not checked here "
    "(RoBERTa-large, all weights)",
    sized=12,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["pet"] - n["head"],
    told={
        "head": "accuracy, mean over 10, 50 and 100 labels, a trained head",
        "pet": "PET",
        "together": "its patterns together",
        "untouched_mean": "patterns without labels",
        "untouched_least": "the worst of them",
        "untouched_most": "the best",
    },
    plot=curves("labels", SIZES, logarithmic=True, head_="a trained head", pet_="PET"),
    needs=("sst2",),
    tried=(
        "the rate is the better of two on seed 0 with 50 labels and 60 test rows: a pattern after "
        "25 steps 1e-3 0.783, 3e-3 0.833; a head after 30 steps 0.600, 0.650",
    ),
)
