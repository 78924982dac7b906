"""Prompt tuning: trained on movie reviews, asked about other domains, beside full fine-tuning."""

from __future__ import annotations

from statistics import fmean

import inlay
from bench.claims.base import Claim, Numbers, Run
from bench.claims.setting import LABELS, Bench, sentences
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
    """Accuracy in every domain, of a prompt and of a whole model that learned movie reviews."""
    s = run.settings
    bench = Bench(run)
    task = bench.by_label()
    train = sentences(run, "train")
    tests = {domain: sentences(run, "test", domain) for domain in DOMAINS}
    found: Numbers = {}

    def ask(name: str) -> None:
        for domain, rows in tests.items():
            found[f"{name}_{domain}"] = bench.score(task, rows)
        found[f"{name}_others"] = fmean(found[f"{name}_{domain}"] for domain in OTHERS)

    handle = bench.teach(
        "prompt",
        Prompt(length=s["length"], start=labels(bench.tokenizer, LABELS)),
        task,
        train,
        lr=s["lr_prompt"],
    )
    ask("prompt")
    handle.detach()
    run.say("full fine-tuning")
    inlay.tune(
        *(bench.model, task, train),
        base_lr=s["lr_full"],
        steps=s["steps"],
        batch_size=s["batch_size"],
        seed=run.seed,
        console=run.console,
    )
    ask("full")
    return found


def plot(axes, seeds) -> None:
    """A pair of bars in each domain."""
    for number, (name, label) in enumerate((("prompt", "prompt"), ("full", "all weights"))):
        means = [fmean(one[f"{name}_{domain}"] for one in seeds) for domain in DOMAINS]
        places = [place + 0.4 * number for place in range(len(DOMAINS))]
        axes.bar(places, means, width=0.4, label=label)
    axes.set_xticks([place + 0.2 for place in range(len(DOMAINS))], DOMAINS)
    axes.set_ylim(0.4, 1.0)
    axes.legend()


CLAIM = Claim(
    name="transfer",
    paper="Lester et al., EMNLP 2021",
    section="5",
    sentence="A prompt carries over to other domains better than a model whose weights were all "
    "tuned.",
    figures="TextbookQA +12.5 F1, QQP to MRPC +3.2 accuracy; not in every pair",
    sized=8,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["prompt_others"] - n["full_others"],
    told={
        "prompt_movie": "accuracy at home, prompt",
        "full_movie": "all weights",
        "prompt_others": "elsewhere, prompt",
        "full_others": "all weights",
    },
    plot=plot,
    tried=("30 steps for both and one rate each; neither was varied",),
)
