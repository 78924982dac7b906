"""P-tuning: what makes its vectors, a BiLSTM, an MLP or nothing, on a small encoder."""

from __future__ import annotations

from bench.claims.base import Claim, Numbers, Run, bars
from bench.claims.setting import LABELS, Bench, sentences
from inlay import Head, PTuning
from inlay.tasks import Classify

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
    s = run.settings
    train = sentences(run, "train")
    test = sentences(run, "test")
    found: Numbers = {}
    for encoder in ("lstm", "mlp", None):
        bench = Bench(run)
        task = bench.bind(Classify(labels=LABELS, template=s["template"]))
        spec = PTuning(length=s["length"], encoder=encoder) + Head(labels=LABELS)
        name = encoder or "none"
        bench.teach(f"encoder {name}", spec, task, train)
        found[f"accuracy_{name}"] = bench.score(task, test)
        found[f"loss_{name}"] = bench.loss(task, test)
    return found


CLAIM = Claim(
    name="ptuning_encoder",
    paper="Liu et al., 2021 (GPT Understands, Too)",
    section="2.2",
    sentence="Vectors made by a BiLSTM learn better than free ones in the same steps.",
    figures="no figure, only text",
    sized=4,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["loss_none"] - n["loss_lstm"],
    told={
        "loss_lstm": "test loss, BiLSTM",
        "loss_mlp": "MLP",
        "loss_none": "none",
    },
    plot=bars(loss_lstm="BiLSTM", loss_mlp="MLP", loss_none="none"),
    tried=("one rate for all three; it was not varied",),
)
