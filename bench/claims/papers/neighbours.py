"""Prompt tuning: which words are nearest to the vectors of a trained prompt."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import LABELS, Experiment, sentences
from bench.claims.plots import bars
from inlay import Inlay, Prompt, labels

SETTINGS = {
    "base": "flan-t5-small",
    "dtype": "bfloat16",
    "length": 10,
    "nearest": 5,
    "template": "{text}",
    "steps": 40,
    "batch_size": 8,
    "lr": 0.3,
    "train": 320,
}


def measure(run: Run) -> Numbers:
    """The share of the label words that are among the nearest of some position.

    For prompts that started from the labels and from common tokens, and for random vectors.
    """
    settings = run.settings
    experiment = Experiment(run)
    task = experiment.by_label()
    train = sentences(run, "train")
    groups = labels(experiment.tokenizer, LABELS)
    ids = [group[0] for group in groups]
    embeddings = F.normalize(experiment.model.get_input_embeddings().weight.float(), dim=1)
    numbers: Numbers = {}
    for name, start in (("labels", groups), ("common", "common")):
        handle = experiment.fit(
            f"start {name}", Prompt(length=settings["length"], start=start), task, train
        )
        near = nearest(_vectors(handle), embeddings, settings["nearest"])
        numbers[f"found_{name}"] = share(ids, near)
        numbers[f"together_{name}"] = together(near, embeddings)
        handle.detach()
    torch.manual_seed(run.seed)
    near = nearest(
        torch.randn(settings["length"], embeddings.shape[1]), embeddings, settings["nearest"]
    )
    numbers["found_random"] = share(ids, near)
    numbers["together_random"] = together(near, embeddings)
    return numbers


def _vectors(handle: Inlay) -> Tensor:
    (values,) = handle.parameters()
    return values.detach().float()


def nearest(vectors: Tensor, embeddings: Tensor, count: int) -> list[list[int]]:
    """The tokens nearest by cosine to each vector.

    vectors: `[P, D]`. embeddings: `[V, D]`, of length 1. count: how many tokens for each vector.
    """
    return (F.normalize(vectors, dim=1) @ embeddings.T).topk(count, dim=1).indices.tolist()


def share(ids: Sequence[int], near: Sequence[Sequence[int]]) -> float:
    """The share of the ids that are near some position."""
    every = {token for tokens in near for token in tokens}
    return fmean(float(token in every) for token in ids)


def together(near: Sequence[Sequence[int]], embeddings: Tensor) -> float:
    """The mean cosine between two neighbours of one position, averaged over positions."""
    means: list[float] = []
    for tokens in near:
        rows = embeddings[list(tokens)]
        pairs = len(tokens) * (len(tokens) - 1) / 2
        means.append(float((rows @ rows.T).triu(1).sum() / pairs))
    return fmean(means)


CLAIM = Claim(
    name="neighbours",
    paper="Lester et al., EMNLP 2021",
    section="7",
    sentence="The label words are among the nearest neighbours of a trained prompt that started "
    "from them, and not of random vectors, whose neighbours have less to do with each other.",
    figures="no figure, only text",
    minutes=6,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: min(
        n["found_labels"] - n["found_random"], n["together_labels"] - n["together_random"]
    ),
    reported={
        "found_labels": "label words found, started from them",
        "found_common": "from common tokens",
        "found_random": "random vectors",
        "together_labels": "cosine within neighbours, trained",
        "together_random": "random",
    },
    plot=bars(
        found_labels="from labels",
        found_common="from common",
        found_random="random",
        together_labels="cosine, trained",
        together_random="cosine, random",
    ),
    tried=(
        "prompts that started from common tokens: no label word was among the five nearest of any "
        "position, so what holds is that label words stay where they were put",
    ),
)
