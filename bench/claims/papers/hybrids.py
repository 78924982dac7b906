"""MAM and S4: against LoRA with as many parameters."""

from __future__ import annotations

import inlay
from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import Experiment, accuracy, labelled
from bench.claims.plots import bars
from inlay import MAM, S4, LoRA
from inlay.budget import count_parameters

SETTINGS = {
    "base": "minilm",
    "dtype": "bfloat16",
    "set": "trec",
    "budget": 0.005,
    "length": 16,
    "scale": 2.0,
    "steps": 300,
    "batch_size": 16,
    "train": 4800,
    "test": 500,
}


def measure(run: Run) -> Numbers:
    """Accuracy of the three, and the parameters of each. LoRA and MAM are fitted to S4's."""
    settings = run.settings
    data, model = labelled(run, settings["set"]), Experiment(run).model
    s4 = S4(budget=settings["budget"])
    budget = count_parameters(model, s4)
    mam = MAM(length=settings["length"], scale=settings["scale"])
    methods = {
        "lora": inlay.fit_budget(model, LoRA, budget),
        "mam": inlay.fit_budget(model, mam, budget),
        "s4": s4,
    }
    numbers: Numbers = {}
    for name, method in methods.items():
        numbers[name] = accuracy(run, name, method, data)
        numbers[f"parameters_{name}"] = count_parameters(model, method)
    return numbers


CLAIM = Claim(
    name="hybrids",
    paper="He et al., ICLR 2022; Chen et al., ICLR 2023",
    section="",
    sentence="With as many parameters MAM and S4 are both better than LoRA.",
    figures="MAM equal to full fine-tuning on MNLI and SST-2 with 0.5 % of the parameters; S4's "
    "figures were not checked",
    minutes=5,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: min(n["mam"], n["s4"]) - n["lora"],
    reported={
        "lora": "accuracy, LoRA",
        "mam": "MAM",
        "s4": "S4",
        "parameters_lora": "parameters, LoRA",
        "parameters_mam": "MAM",
        "parameters_s4": "S4",
    },
    plot=bars(lora="LoRA", mam="MAM", s4="S4"),
    data=("trec",),
)
