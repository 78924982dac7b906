"""Prompt tuning: five prompts for one task, asked at once, and their vote."""

from __future__ import annotations

from bench.claims.base import Claim, Numbers, Run, bars
from bench.claims.setting import Bench, sentences
from inlay import Prompt
from inlay.training import vote

SETTINGS = {
    "base": "flan-t5-small",
    "dtype": "bfloat16",
    "members": 5,
    "length": 10,
    "template": "{text}",
    "steps": 24,
    "batch_size": 8,
    "lr": 0.3,
    "train": 320,
    "test": 150,
}


def measure(run: Run) -> Numbers:
    """Accuracy of five prompts and of their vote, from one pass over held-out reviews.

    The members differ in what they start from and in the order of their rows.
    """
    s = run.settings
    bench = Bench(run)
    task = bench.by_label()
    train = sentences(run, "train")
    test = sentences(run, "test")
    members = []
    for number in range(s["members"]):
        members.append(
            bench.teach(
                f"member {number}",
                Prompt(length=s["length"]),
                task,
                train,
                name=f"member{number}",
                seed=100 * run.seed + number,
            )
        )
        members[-1].enabled = False  # the next one learns alone
    for member in members:
        member.enabled = True
    voted = vote(bench.model, members, task, test)
    singles = [one["accuracy"] for one in voted.singles]
    return {
        "accuracy_mean": voted.mean["accuracy"],
        "accuracy_best": max(singles),
        "accuracy_vote": voted.ensemble["accuracy"],
    }


CLAIM = Claim(
    name="ensemble",
    paper="Lester et al., EMNLP 2021",
    section="6",
    sentence="The vote of five prompts is better than they are on average.",
    figures="mean 90.5, best 91.0, vote 91.3 (SuperGLUE, T5-XXL)",
    sized=6,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["accuracy_vote"] - n["accuracy_mean"],
    told={
        "accuracy_mean": "accuracy, mean of five",
        "accuracy_best": "the best",
        "accuracy_vote": "the vote",
    },
    plot=bars(accuracy_mean="mean", accuracy_best="best", accuracy_vote="vote"),
)
