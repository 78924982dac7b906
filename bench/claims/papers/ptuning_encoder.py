"""P-tuning: vectors from a BiLSTM, from an MLP, or free parameters, on a small encoder."""

from __future__ import annotations

from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import LABELS, Experiment, sentences
from bench.claims.plots import bars
from inlay import Head, PTuning
from inlay.tasks import Classify, TrainedHead

SETTINGS = {
    "base": "minilm",
    "length": 6,
    "template": "{p*3} {text} {p*3}",
    "steps": 60,
    "batch_size": 8,
    "lr": 1e-2,
    "train": 400,
    "test": 200,
}


def measure(run: Run) -> Numbers:
    """Accuracy and loss on held-out movie reviews."""
    settings = run.settings
    train = sentences(run, "train")
    test = sentences(run, "test")
    numbers: Numbers = {}
    for encoder in ("lstm", "mlp", None):
        experiment = Experiment(run)
        task = experiment.bind(Classify(by=TrainedHead(LABELS), template=settings["template"]))
        spec = PTuning(length=settings["length"], encoder=encoder) + Head(labels=LABELS)
        name = encoder or "none"
        experiment.fit(f"encoder {name}", spec, task, train)
        numbers[f"accuracy_{name}"] = experiment.score(task, test)
        numbers[f"loss_{name}"] = experiment.loss(task, test)
    return numbers


CLAIM = Claim(
    name="ptuning_encoder",
    paper="Liu et al., 2021 (GPT Understands, Too)",
    section="2.2",
    sentence="Vectors made by a BiLSTM learn better than free ones in the same steps.",
    figures="no figure, only text",
    minutes=4,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["loss_none"] - n["loss_lstm"],
    reported={
        "loss_lstm": "test loss, BiLSTM",
        "loss_mlp": "MLP",
        "loss_none": "none",
    },
    plot=bars(loss_lstm="BiLSTM", loss_mlp="MLP", loss_none="none"),
    tried=("one rate for all three; it was not varied",),
)
