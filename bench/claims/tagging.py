"""P-tuning v2: names of entities, beside prompt tuning and full fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping

from bench.claims.base import Claim, Numbers, Run, bars
from bench.claims.setting import Bench, drawn
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
    """F1 over entities, and the loss a word, of prompts in one layer, in every, and of all weights.

    All three train a head on every word as well.
    """
    s = run.settings
    folder = run.folder("wnut17")
    everything = load(folder, split="train")
    train = drawn(run, "train", everything)
    test = drawn(run, "test", load(folder, split="test"))
    found: Numbers = {}

    def ready() -> tuple[Bench, Tag]:
        bench = Bench(run)
        task = Tag()
        task.prepare(everything)
        bench.bind(task)
        return bench, task

    def ask(name: str, bench: Bench, task: Tag) -> None:
        found[f"f1_{name}"] = bench.score(task, test)
        found[f"loss_{name}"] = bench.loss(task, test)

    for name, method in (
        ("prompt", Prompt(length=s["length"])),
        ("v2", PTuningV2(length=s["length"], start=None, dropout=0.1)),
    ):
        bench, task = ready()
        bench.teach(name, method + task.head(), task, train, lr=s[f"lr_{name}"])
        ask(name, bench, task)
    bench, task = ready()
    rates = {"lr": s["lr_head"], "base_lr": s["lr_full"]}
    bench.teach("full fine-tuning", task.head(), task, train, **rates)
    ask("full", bench, task)
    return found


def margin(n: Mapping[str, float]) -> float:
    """How much nearer the deep prompts are to full fine-tuning; that has to have learned."""
    return min(2 * n["f1_v2"] - n["f1_prompt"] - n["f1_full"], n["f1_full"])


CLAIM = Claim(
    name="tagging",
    paper="Liu et al., ACL 2022",
    section="4",
    sentence="On a small model deep prompts tag nearly as well as full fine-tuning, where prompts "
    "in the embedding layer alone fail: their F1 is nearer to the former's than to the latter's.",
    figures="authors' re-run of RTE, BERT-large: 80.1",
    sized=8,
    settings=SETTINGS,
    measure=measure,
    margin=margin,
    told={"f1_prompt": "F1, prompt", "f1_v2": "P-tuning v2", "f1_full": "all weights"},
    plot=bars(f1_prompt="prompt", f1_v2="P-tuning v2", f1_full="all weights"),
    needs=("wnut17",),
    tried=("80 steps and one rate for each; neither was varied, and deep prompts learned least",),
)
