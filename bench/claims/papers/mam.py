"""MAM: against full fine-tuning where text is written."""

from __future__ import annotations

import inlay
from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import Experiment, sample
from bench.claims.plots import bars
from inlay import MAM
from inlay.data.dataset import Example
from inlay.data.loading import load
from inlay.tasks import Generate

SETTINGS = {
    "base": "flan-t5-small",
    "dtype": "float32",
    "budget": "6.7%",
    "steps": 300,
    "batch_size": 4,
    "lr_full": 3e-4,
    "longest": 170,
    "train": 1200,
    "test": 160,
    "written": 48,
    "worse": 0.05,
}


def measure(run: Run) -> Numbers:
    """Loss and BLEU on held-out restaurants of MAM, and of all weights."""
    settings = run.settings
    train, test = short(run, "train"), short(run, "test")
    numbers: Numbers = {}

    def score(name: str, experiment: Experiment, task: Generate) -> None:
        numbers[f"loss_{name}"] = experiment.loss(task, test)
        numbers[f"bleu_{name}"] = experiment.score(task, test[: settings["written"]])

    experiment, task = prepare(run)
    method = inlay.fit_budget(experiment.model, MAM, settings["budget"])
    experiment.fit("MAM", method, task, train)
    score("mam", experiment, task)
    experiment, task = prepare(run)
    run.show("full fine-tuning")
    inlay.tune(
        *(experiment.model, task, train),
        base_lr=settings["lr_full"],
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        seed=run.seed,
        console=run.console,
    )
    score("full", experiment, task)
    return numbers


def prepare(run: Run) -> tuple[Experiment, Generate]:
    """A fresh base, and the task of writing about restaurants."""
    experiment, task = Experiment(run), Generate(generation={"max_new_tokens": 40})
    experiment.bind(task)
    return experiment, task


def short(run: Run, split: str) -> list[Example]:
    """A sample of the restaurants with short texts."""
    rows = load(run.folder("e2e"), split=split)
    longest = run.settings["longest"]
    return sample(
        run,
        split,
        [r for r in rows if len(str(r.fields["source"]) + str(r.fields["target"])) <= longest],
    )


CLAIM = Claim(
    name="mam",
    paper="He et al., ICLR 2022",
    section="",
    sentence="With 6.7 % of the parameters MAM's loss is at most a twentieth above that of full "
    "fine-tuning.",
    figures="XSum, ROUGE-2: MAM 21.90 with 6.7 % of the parameters, all weights 21.94 (BART-large)",
    minutes=18,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: (1 + SETTINGS["worse"]) * n["loss_full"] - n["loss_mam"],
    reported={
        "loss_mam": "loss a token, MAM",
        "loss_full": "all weights",
        "bleu_mam": "BLEU, MAM",
        "bleu_full": "all weights",
    },
    plot=bars(loss_mam="MAM", loss_full="all weights"),
    data=("e2e",),
)
