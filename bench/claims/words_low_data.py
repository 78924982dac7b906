"""Prefix tuning: starting from real words, or at random, with a hundred examples."""

from __future__ import annotations

from bench.claims.base import Claim, Numbers, Run, bars
from bench.claims.setting import Bench, restaurants
from inlay import Prefix, words
from inlay.tasks import Generate

SETTINGS = {
    "base": "flan-t5-small",
    "dtype": "bfloat16",
    "relevant": "Write the table as text:",
    "irrelevant": "elephant keyboard divide active banana music",
    "length": 6,
    "mlp": None,
    "steps": 30,
    "batch_size": 8,
    "lr": 1e-2,
    "train": 100,
    "test": 48,
}


def measure(run: Run) -> Numbers:
    """Loss on held-out restaurants from each start."""
    s = run.settings
    bench = Bench(run)
    task = bench.bind(Generate())
    train = restaurants(run, "train")
    test = restaurants(run, "test")
    starts = {name: words(bench.tokenizer, s[name]) for name in ("relevant", "irrelevant")}
    ids = {name: tuple(i for (i,) in groups)[: s["length"]] for name, groups in starts.items()}
    found: Numbers = {}
    for name, start in {**ids, "random": None}.items():
        handle = bench.teach(
            f"{name} start", Prefix(length=s["length"], mlp=s["mlp"], start=start), task, train
        )
        found[f"loss_{name}"] = bench.loss(task, test)
        handle.detach()
    return found


CLAIM = Claim(
    name="words_low_data",
    paper="Li & Liang, ACL 2021",
    section="7.4",
    sentence="With few examples a prefix that starts from real words does better than one that "
    "starts at random.",
    figures="50 to 500 examples, Fig. 5, without numbers",
    sized=6,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["loss_random"] - n["loss_relevant"],
    told={
        "loss_relevant": "loss a token, relevant words",
        "loss_irrelevant": "other words",
        "loss_random": "random",
    },
    plot=bars(loss_relevant="relevant", loss_irrelevant="other words", loss_random="random"),
    needs=("e2e",),
    tried=("one rate for all starts, without the MLP; neither was varied",),
)
