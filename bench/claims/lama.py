"""P-tuning: facts asked for with trained vectors, and with a template written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from bench.claims.base import Claim, Numbers, Run
from bench.claims.setting import Bench, drawn
from inlay import PTuning
from inlay.data.loading import load
from inlay.tasks import Generate

RELATIONS = ("P176", "P103", "P1303", "P178", "P495")

SETTINGS = {
    "base": "smollm2",
    "relations": RELATIONS,
    "template": "{p*3} {subject}{p*3}",
    "length": 6,
    "encoder": "lstm",
    "steps": 60,
    "batch_size": 8,
    "lr": 3e-3,
    "train": 160,
    "test": 60,
}


def measure(run: Run) -> Numbers:
    """P@1 of every relation, by hand and with trained vectors.

    The object is one token, and the base's next one is the likeliest of its whole vocabulary.
    """
    s = run.settings
    folder = run.folder("lama/trex")
    rows = {split: [row.fields for row in load(folder, split=split)] for split in ("train", "test")}
    bench = Bench(run)
    found: Numbers = {}
    for relation in s["relations"]:
        own = {
            split: [_row(row) for row in of if row["relation"].startswith(relation + " ")]
            for split, of in rows.items()
        }
        objects = sorted({row["target"].strip() for row in own["train"]})
        objects = [name for name in objects if len(_ids(bench.tokenizer, " " + name)) == 1]
        kept = {
            split: [row for row in of if row["target"].strip() in objects]
            for split, of in own.items()
        }
        train = drawn(run, "train", load(kept["train"]))
        test = drawn(run, "test", load(kept["test"]))
        one = {"metric": "exact_match", "generation": {"max_new_tokens": 1}}
        by_hand = bench.bind(Generate(template="{text}", **one))
        found[f"hand_{relation}"] = bench.score(by_hand, test)
        task = bench.bind(Generate(template=s["template"], **one))
        handle = bench.teach(
            relation, PTuning(length=s["length"], encoder=s["encoder"]), task, train
        )
        found[f"trained_{relation}"] = bench.score(task, test)
        handle.detach()
    for name in ("hand", "trained"):
        found[name] = fmean(found[f"{name}_{relation}"] for relation in s["relations"])
    return found


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The subject, the template up to the object, and the object."""
    before = row["template"].partition("[Y]")[0].strip()
    text = before.replace("[X]", row["subject"])
    return {"subject": row["subject"], "text": text, "target": " " + row["object"]}


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def plot(axes, seeds) -> None:
    """A pair of bars for each relation."""
    for number, (name, label) in enumerate((("hand", "by hand"), ("trained", "P-tuning"))):
        means = [fmean(one[f"{name}_{relation}"] for one in seeds) for relation in RELATIONS]
        axes.bar(
            [place + 0.4 * number for place in range(len(means))], means, width=0.4, label=label
        )
    axes.set_xticks([place + 0.2 for place in range(len(RELATIONS))], RELATIONS)
    axes.set_ylabel("P@1")
    axes.legend()


CLAIM = Claim(
    name="lama",
    paper="Liu et al., 2021 (GPT Understands, Too)",
    section="3.1",
    sentence="Trained vectors ask a frozen decoder for facts better than templates by hand.",
    figures="P@1, LAMA-29k 45.2 to 64.2, LAMA-34k 43.3 to 50.6",
    sized=6,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["trained"] - n["hand"],
    told={"hand": "P@1 in the whole vocabulary, by hand", "trained": "P-tuning"},
    plot=plot,
    tried=(
        "20 steps, and only the relation's own objects as answers: margins of 0.075, -0.012 and "
        "0.002 (0.419 by hand, 0.441 trained), of which the last two hang on a few rows",
    ),
    needs=("lama/trex",),
)
