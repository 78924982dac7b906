"""Prefix tuning: trained activations between text and answer, or before both."""

from __future__ import annotations

from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import Experiment, restaurants
from bench.claims.plots import bars
from inlay import Infix, Prefix
from inlay.tasks import Generate

SETTINGS = {
    "base": "smollm2",
    "dtype": "bfloat16",
    "length": 10,
    "template": "{source}\n",
    "steps": 60,
    "batch_size": 8,
    "lr_prefix": 3e-4,
    "lr_infix": 1e-3,
    "train": 480,
    "test": 64,
    "written": 24,
}


def measure(run: Run) -> Numbers:
    """Loss and BLEU on held-out restaurants with a prefix and with an infix of the same length."""
    settings = run.settings
    experiment = Experiment(run)
    train = restaurants(run, "train")
    test = restaurants(run, "test")
    specs = {
        "prefix": (Prefix(length=settings["length"]), settings["template"]),
        "infix": (Infix(length=settings["length"]), f"{{source}}{{p*{settings['length']}}}\n"),
    }
    numbers: Numbers = {}
    for name, (spec, template) in specs.items():
        task = experiment.bind(Generate(template=template, generation={"max_new_tokens": 48}))
        handle = experiment.fit(name, spec, task, train, lr=settings[f"lr_{name}"])
        numbers[f"loss_{name}"] = experiment.loss(task, test)
        numbers[f"bleu_{name}"] = experiment.score(task, test[: settings["written"]])
        handle.detach()
    return numbers


CLAIM = Claim(
    name="infix",
    paper="Li & Liang, ACL 2021",
    section="7.3",
    sentence="Trained activations between text and answer do worse than before both.",
    figures="E2E, BLEU 67.9, 67.2, 66.7 with an infix of 1, 10, 20; prefix 69.7 (GPT-2 medium)",
    minutes=12,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["loss_infix"] - n["loss_prefix"],
    reported={
        "loss_infix": "loss a token, infix",
        "loss_prefix": "prefix",
        "bleu_infix": "BLEU, infix",
        "bleu_prefix": "prefix",
    },
    plot=bars(loss_infix="infix", loss_prefix="prefix"),
    data=("e2e",),
    tried=(
        "the rates are the best of two each with the MLP on seed 10 after 40 steps (prefix 1e-4 "
        "1.634, 3e-4 1.568; infix 3e-4 1.785, 1e-3 1.724); without it both were worse at 1e-2 and "
        "3e-2 (prefix 1.727, 1.597; infix 2.007, 1.739)",
    ),
)
