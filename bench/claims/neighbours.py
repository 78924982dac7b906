"""Prompt tuning: which words lie nearest to the vectors of a trained prompt."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.claims.base import Claim, Numbers, Run, bars
from bench.claims.setting import LABELS, Bench, sentences
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

    Of prompts that started from the labels and from common tokens, after training, and of one
    that started from common tokens, before it.
    """
    s = run.settings
    bench = Bench(run)
    task = bench.by_label()
    train = sentences(run, "train")
    groups = labels(bench.tokenizer, LABELS)
    ids = [group[0] for group in groups]
    table = F.normalize(bench.model.get_input_embeddings().weight.float(), dim=1)
    found: Numbers = {}
    for name, start in (("labels", groups), ("common", "common")):
        handle = bench.teach(f"start {name}", Prompt(length=s["length"], start=start), task, train)
        near = nearest(_vectors(handle), table, s["nearest"])
        found[f"found_{name}"] = share(ids, near)
        found[f"together_{name}"] = together(near, table)
        handle.detach()
    torch.manual_seed(run.seed)
    near = nearest(torch.randn(s["length"], table.shape[1]), table, s["nearest"])
    found["found_random"] = share(ids, near)
    found["together_random"] = together(near, table)
    return found


def _vectors(handle: Inlay) -> Tensor:
    (values,) = handle.parameters()
    return values.detach().float()


def nearest(vectors: Tensor, table: Tensor, number: int) -> list[list[int]]:
    """The rows of a table `[V, D]` of unit vectors nearest to each of `[P, D]` by cosine."""
    return (F.normalize(vectors, dim=1) @ table.T).topk(number, dim=1).indices.tolist()


def share(ids: Sequence[int], near: Sequence[Sequence[int]]) -> float:
    """How many of the ids are near some position, as a share."""
    every = {number for one in near for number in one}
    return fmean(float(number in every) for number in ids)


def together(near: Sequence[Sequence[int]], table: Tensor) -> float:
    """The mean cosine between two neighbours of one position, over positions."""
    scores: list[Any] = []
    for one in near:
        rows = table[list(one)]
        pairs = (rows @ rows.T).triu(1).sum() / (len(one) * (len(one) - 1) / 2)
        scores.append(float(pairs))
    return fmean(scores)


CLAIM = Claim(
    name="neighbours",
    paper="Lester et al., EMNLP 2021",
    section="7",
    sentence="The label words are among the nearest neighbours of a trained prompt that started "
    "from them, and not of random vectors, whose neighbours have less to do with each other.",
    figures="no figure, only text",
    sized=6,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: min(
        n["found_labels"] - n["found_random"], n["together_labels"] - n["together_random"]
    ),
    told={
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
