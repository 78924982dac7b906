"""P-tuning v2: tagging named entities, compared with prompt tuning and full fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping

from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import Experiment, sample
from bench.claims.plots import bars
from inlay import Prompt, PTuningV2
from inlay.data.loading import load
from inlay.tasks import Tag

SETTINGS = {
    "base": "minilm",
    "length": 16,
    "steps": 80,
    "batch_size": 8,
    "lr_prompt": 3e-2,
    "lr_v2": 1e-2,
    "lr_full": 3e-4,
    "lr_head": 1e-2,
    "train": 640,
    "test": 150,
}


def measure(run: Run) -> Numbers:
    """F1 over entities, and the loss a word, of prompts in one layer or in all, and of all weights.

    All three train a head on every word too.
    """
    settings = run.settings
    folder = run.folder("wnut17")
    everything = load(folder, split="train")
    train = sample(run, "train", everything)
    test = sample(run, "test", load(folder, split="test"))
    numbers: Numbers = {}

    def prepare() -> tuple[Experiment, Tag]:
        experiment = Experiment(run)
        task = Tag()
        task.prepare(everything)
        experiment.bind(task)
        return experiment, task

    def score(name: str, experiment: Experiment, task: Tag) -> None:
        numbers[f"f1_{name}"] = experiment.score(task, test)
        numbers[f"loss_{name}"] = experiment.loss(task, test)

    for name, method in (
        ("prompt", Prompt(length=settings["length"])),
        ("v2", PTuningV2(length=settings["length"], start=None, dropout=0.1)),
    ):
        experiment, task = prepare()
        experiment.fit(name, method + task.head(), task, train, lr=settings[f"lr_{name}"])
        score(name, experiment, task)
    experiment, task = prepare()
    rates = {"lr": settings["lr_head"], "base_lr": settings["lr_full"]}
    experiment.fit("full fine-tuning", task.head(), task, train, **rates)
    score("full", experiment, task)
    return numbers


def margin(n: Mapping[str, float]) -> float:
    """How much nearer the deep prompts are to full fine-tuning, which must have learned too."""
    return min(2 * n["f1_v2"] - n["f1_prompt"] - n["f1_full"], n["f1_full"])


CLAIM = Claim(
    name="tagging",
    paper="Liu et al., ACL 2022",
    section="4",
    sentence="On a small model deep prompts tag nearly as well as full fine-tuning, where prompts "
    "in the embedding layer alone fail: their F1 is nearer to the former's than to the latter's.",
    figures="authors' re-run of RTE, BERT-large: 80.1",
    minutes=8,
    settings=SETTINGS,
    measure=measure,
    margin=margin,
    reported={"f1_prompt": "F1, prompt", "f1_v2": "P-tuning v2", "f1_full": "all weights"},
    plot=bars(f1_prompt="prompt", f1_v2="P-tuning v2", f1_full="all weights"),
    data=("wnut17",),
    tried=("80 steps and one rate for each; neither was varied, and deep prompts learned least",),
)
