"""Prompt tuning: the vote of five prompts that were trained for one task."""

from __future__ import annotations

from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import Experiment, sentences
from bench.claims.plots import bars
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
    """Accuracy of five prompts and of their vote on held-out reviews.

    The members differ in their starting values and in the order of their rows.
    """
    settings = run.settings
    experiment = Experiment(run)
    task = experiment.by_label()
    train = sentences(run, "train")
    test = sentences(run, "test")
    members = []
    for number in range(settings["members"]):
        members.append(
            experiment.fit(
                f"member {number}",
                Prompt(length=settings["length"]),
                task,
                train,
                name=f"member{number}",
                seed=100 * run.seed + number,
            )
        )
        members[-1].enabled = False  # while the next member learns
    for member in members:
        member.enabled = True
    votes = vote(experiment.model, members, task, test)
    singles = [scores["accuracy"] for scores in votes.members]
    return {
        "accuracy_mean": votes.mean["accuracy"],
        "accuracy_best": max(singles),
        "accuracy_vote": votes.vote["accuracy"],
    }


CLAIM = Claim(
    name="ensemble",
    paper="Lester et al., EMNLP 2021",
    section="6",
    sentence="The vote of five prompts is better than they are on average.",
    figures="mean 90.5, best 91.0, vote 91.3 (SuperGLUE, T5-XXL)",
    minutes=6,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["accuracy_vote"] - n["accuracy_mean"],
    reported={
        "accuracy_mean": "accuracy, mean of five",
        "accuracy_best": "the best",
        "accuracy_vote": "the vote",
    },
    plot=bars(accuracy_mean="mean", accuracy_best="best", accuracy_vote="vote"),
)
