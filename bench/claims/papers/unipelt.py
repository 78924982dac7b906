"""UniPELT: against its members LoRA, prefix and adapter, with few examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import accuracy, labelled
from bench.claims.plots import paired_bars
from inlay import LoRA, Pfeiffer, Prefix, UniPELT
from inlay.core.method import Spec

SIZES = (100, 500)
METHODS: dict[str, Spec] = {
    "lora": LoRA(),
    "prefix": Prefix(),
    "adapter": Pfeiffer(),
    "unipelt": UniPELT(),
}
MEMBERS = ("lora", "prefix", "adapter")

SETTINGS = {
    "base": "minilm",
    "dtype": "bfloat16",
    "set": "trec",
    "sizes": SIZES,
    "steps": 300,
    "batch_size": 16,
    "train": 500,
    "test": 500,
}


def measure(run: Run) -> Numbers:
    """Accuracy of UniPELT and of each member, all at their defaults, by the number of examples."""
    data = labelled(run, run.settings["set"])
    return {
        f"{name}_{size}": accuracy(
            run, f"{name}, {size} examples", spec, replace(data, train=data.train[:size])
        )
        for size in SIZES
        for name, spec in METHODS.items()
    }


def margin(n: Mapping[str, float]) -> float:
    """How much better than the best member, with the number of examples where that is least."""
    return min(n[f"unipelt_{k}"] - max(n[f"{name}_{k}"] for name in MEMBERS) for k in SIZES)


CLAIM = Claim(
    name="unipelt",
    paper="Mao et al., ACL 2022",
    section="",
    sentence="With 100 and with 500 examples UniPELT is better than each of its members.",
    figures="GLUE on average with 100 examples: UniPELT 62.59, LoRA 49.26, prefix 47.99, adapter "
    "58.24; with 500: UniPELT 69.98 (BERT-base)",
    minutes=14,
    settings=SETTINGS,
    measure=measure,
    margin=margin,
    reported={
        f"{name}_{size}": f"accuracy, {size} examples, {name}" if name == "lora" else name
        for size in SIZES
        for name in METHODS
    },
    plot=paired_bars(
        [str(size) for size in SIZES],
        "accuracy",
        lora="LoRA",
        prefix="prefix",
        adapter="adapter",
        unipelt="UniPELT",
    ),
    data=("trec",),
)
