"""Two inlays of one base beside each other: does another seed end in the same place?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from inlay.errors import SpecError
from inlay.handle import Inlay
from inlay.inspect.attention import Share
from inlay.inspect.vectors import Neighbours, keys_of


@dataclass(frozen=True)
class Matched:
    """The positions of two prompts at one place, paired.

    pairs: (position here, position there), in the order of here. cosines: of each pair.
    overlaps: of each pair, the tokens nearest to both over those nearest to either (Jaccard).
    overlap: the same for all tokens near any position.
    """

    place: str
    pairs: tuple[tuple[int, int], ...]
    cosines: tuple[float, ...]
    overlaps: tuple[float, ...]
    overlap: float


@dataclass(frozen=True)
class Alike:
    """The keys and values of two prefixes in one kind of attention.

    attention: `decoder.attn`, … keys, values `[L, H]`: the cosine of what stands at the same
    position, mean over positions; H counts key-value heads.
    """

    attention: str
    layers: tuple[int, ...]
    keys: Tensor
    values: Tensor


def matching(similarity: Tensor) -> list[tuple[int, int]]:
    """Pairs (row, column), each at most once, in the order of rows: `[P, Q]` -> min(P, Q) pairs.

    Greedy: the most similar pair first, then the most similar of what is left. The sum need not
    be the highest there is, but no row and column would both rather have each other.
    """
    rows: dict[int, int] = {}
    width = similarity.shape[1]
    for flat in similarity.flatten().argsort(descending=True, stable=True).tolist():
        row, column = divmod(flat, width)
        if row not in rows and column not in rows.values():
            rows[row] = column
    return sorted(rows.items())


def compare_prompts(here: Sequence[Neighbours], there: Sequence[Neighbours]) -> list[Matched]:
    """Pair the positions of prompts at the same places; prompts may differ in length.

    Raises SpecError where the two have prompts, and none at the same place.
    """
    others = {one.place: one for one in there}
    both = [(one, others[one.place]) for one in here if one.place in others]
    if here and there and not both:
        raise SpecError(
            f"the prompts stand at different places ({here[0].place}, {there[0].place}) "
            "and cannot be compared"
        )
    return [_matched(a, b) for a, b in both]


def _matched(a: Neighbours, b: Neighbours) -> Matched:
    similarity = F.normalize(a.vectors, dim=-1) @ F.normalize(b.vectors, dim=-1).T
    pairs = matching(similarity)
    near = [[set(row) for row in one.cosine.ids.tolist()] for one in (a, b)]
    return Matched(
        a.place,
        tuple(pairs),
        tuple(float(similarity[pair]) for pair in pairs),
        tuple(_jaccard(near[0][i], near[1][j]) for i, j in pairs),
        _jaccard(set().union(*near[0]), set().union(*near[1])),
    )


def compare_prefixes(here: Inlay, there: Inlay) -> list[Alike]:
    """The cosines of keys and values at the same places, one result a kind of attention.

    Raises SpecError where the prefixes differ in length.
    """
    others = {key: (k, v) for key, _, k, v in keys_of(there)}
    grouped: dict[str, list[tuple[int, Tensor, Tensor]]] = {}
    for key, site, k, v in keys_of(here):
        if key not in others:
            continue
        k2, v2 = others[key]
        if k.shape != k2.shape:
            raise SpecError(
                f"prefixes of {k.shape[1]} and of {k2.shape[1]} positions cannot be compared "
                "position by position"
            )
        side = f"{site.stack}.{site.role.removesuffix('.kv')}"
        alike = (F.cosine_similarity(k, k2, -1).mean(-1), F.cosine_similarity(v, v2, -1).mean(-1))
        grouped.setdefault(side, []).append((site.layer or 0, *alike))
    return [
        Alike(
            side,
            tuple(layer for layer, _, _ in each),
            torch.stack([k for _, k, _ in each]).cpu(),
            torch.stack([v for _, _, v in each]).cpu(),
        )
        for side, each in grouped.items()
    ]


def correlation(here: Share, there: Share) -> float:
    """Pearson's correlation of two maps over all layers and heads; nan where one is constant.

    Raises SpecError for maps of different attention.
    """
    mine, theirs = ((s.of, s.attention, s.layers, s.shares.shape) for s in (here, there))
    if mine != theirs:
        raise SpecError(
            f"maps of the {here.of} in {here.attention} and of the {there.of} in "
            f"{there.attention} do not have the same layers and heads"
        )
    both = torch.stack((here.shares.flatten(), there.shares.flatten())).double()
    centred = both - both.mean(1, keepdim=True)
    size = centred.norm(dim=1)
    if not bool((size > 1e-9).all()):
        return float("nan")
    return float((centred[0] @ centred[1]) / (size[0] * size[1]))


def _jaccard(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0
