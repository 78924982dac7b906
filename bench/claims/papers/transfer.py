"""Prompt tuning: trained on movie reviews, tested on other domains, against full fine-tuning."""

from __future__ import annotations

from statistics import fmean

import inlay
from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import LABELS, Experiment, sentences
from bench.claims.plots import paired_bars
from inlay import Prompt, labels

OTHERS = ("amazon", "tweets", "nyt")
DOMAINS = ("movie", *OTHERS)

SETTINGS = {
    "base": "flan-t5-small",
    "length": 10,
    "template": "{text}",
    "steps": 30,
    "batch_size": 8,
    "lr_prompt": 0.3,
    "lr_full": 3e-4,
    "train": 240,
    "test": 60,
    "dtype": "float32",
}


def measure(run: Run) -> Numbers:
    """Accuracy in every domain, of a prompt and of a whole model trained on movie reviews."""
    settings = run.settings
    experiment = Experiment(run)
    task = experiment.by_label()
    train = sentences(run, "train")
    tests = {domain: sentences(run, "test", domain) for domain in DOMAINS}
    numbers: Numbers = {}

    def score(name: str) -> None:
        for domain, rows in tests.items():
            numbers[f"{name}_{domain}"] = experiment.score(task, rows)
        numbers[f"{name}_others"] = fmean(numbers[f"{name}_{domain}"] for domain in OTHERS)

    handle = experiment.fit(
        "prompt",
        Prompt(length=settings["length"], start=labels(experiment.tokenizer, LABELS)),
        task,
        train,
        lr=settings["lr_prompt"],
    )
    score("prompt")
    handle.detach()
    run.show("full fine-tuning")
    inlay.tune(
        *(experiment.model, task, train),
        base_lr=settings["lr_full"],
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        seed=run.seed,
        console=run.console,
    )
    score("full")
    return numbers


CLAIM = Claim(
    name="transfer",
    paper="Lester et al., EMNLP 2021",
    section="5",
    sentence="A prompt carries over to other domains better than a model whose weights were all "
    "tuned.",
    figures="TextbookQA +12.5 F1, QQP to MRPC +3.2 accuracy; not in every pair",
    minutes=8,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["prompt_others"] - n["full_others"],
    reported={
        "prompt_movie": "accuracy at home, prompt",
        "full_movie": "all weights",
        "prompt_others": "elsewhere, prompt",
        "full_others": "all weights",
    },
    plot=paired_bars(DOMAINS, "accuracy", 0.4, prompt="prompt", full="all weights"),
    tried=("30 steps for both and one rate each; neither was varied",),
)
