"""Two inlays of one base, compared: does another seed give the same prompt or prefix?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from inlay.errors import SpecError
from inlay.handle import Inlay
from inlay.inspect.nearest import Neighbours
from inlay.inspect.recorder import AttentionShare, attention_name
from inlay.inspect.vectors import prefix_keys


@dataclass(frozen=True)
class MatchedPrompts:
    """The positions of two prompts at one place, paired.

    place:    the key of both pieces, such as `embed/0`.
    pairs:    (position in the first, position in the second), in the order of the first.
    cosines:  the cosine of each pair.
    overlaps: of each pair, the tokens nearest to both over those nearest to either (Jaccard).
    overlap:  the same for all tokens near any position.
    """

    place: str
    pairs: tuple[tuple[int, int], ...]
    cosines: tuple[float, ...]
    overlaps: tuple[float, ...]
    overlap: float


@dataclass(frozen=True)
class PrefixSimilarity:
    """How alike two prefixes are in one kind of attention. L layers, H key-value heads.

    attention: such as `decoder.attn`.
    layers:    the numbers of the layers.
    keys, values: `[L, H]`, the cosine of the two at the same position, mean over positions.
    """

    attention: str
    layers: tuple[int, ...]
    keys: Tensor
    values: Tensor


def match_positions(similarity: Tensor) -> list[tuple[int, int]]:
    """Pair rows with columns, each at most once: `[P, Q]` -> min(P, Q) pairs, in order of rows.

    Greedy: the most similar pair first, then the most similar pair of what is left. The sum may
    not be the highest possible, but no row and column prefer each other over their partners.
    """
    columns: dict[int, int] = {}
    width = similarity.shape[1]
    for index in similarity.flatten().argsort(descending=True, stable=True).tolist():
        row, column = divmod(index, width)
        if row not in columns and column not in columns.values():
            columns[row] = column
    return sorted(columns.items())


def compare_prompts(
    first: Sequence[Neighbours], second: Sequence[Neighbours]
) -> list[MatchedPrompts]:
    """Pair the positions of two inlays' prompts at the same places; their lengths may differ.

    first, second: what `neighbours` returns for each inlay.

    Raises SpecError where both have prompts, but none at the same place.
    """
    by_place = {prompt.place: prompt for prompt in second}
    pairs = [(prompt, by_place[prompt.place]) for prompt in first if prompt.place in by_place]
    if first and second and not pairs:
        raise SpecError(
            f"the prompts are at different places ({first[0].place} and {second[0].place}); "
            "compare inlays that have prompts at the same place"
        )
    return [_match(*pair) for pair in pairs]


def _match(first: Neighbours, second: Neighbours) -> MatchedPrompts:
    similarity = F.normalize(first.vectors, dim=-1) @ F.normalize(second.vectors, dim=-1).T
    pairs = match_positions(similarity)
    first_near, second_near = (
        [set(row) for row in prompt.cosine.ids.tolist()] for prompt in (first, second)
    )
    return MatchedPrompts(
        first.place,
        tuple(pairs),
        tuple(float(similarity[pair]) for pair in pairs),
        tuple(_jaccard(first_near[i], second_near[j]) for i, j in pairs),
        _jaccard(set().union(*first_near), set().union(*second_near)),
    )


def compare_prefixes(first: Inlay, second: Inlay) -> list[PrefixSimilarity]:
    """The cosines of two prefixes' keys and values, one result per kind of attention.

    Places where only one of the inlays has a prefix are left out.

    Raises SpecError where the prefixes differ in length.
    """
    by_key = {key: (k, v) for key, _, k, v in prefix_keys(second)}
    grouped: dict[str, list[tuple[int, Tensor, Tensor]]] = {}
    for key, site, k, v in prefix_keys(first):
        if key not in by_key:
            continue
        other_k, other_v = by_key[key]
        if k.shape != other_k.shape:
            raise SpecError(
                f"prefixes of {k.shape[1]} and of {other_k.shape[1]} positions cannot be "
                "compared; compare prefixes of one length"
            )
        keys = F.cosine_similarity(k, other_k, -1).mean(-1)
        values = F.cosine_similarity(v, other_v, -1).mean(-1)
        grouped.setdefault(attention_name(site), []).append((site.layer or 0, keys, values))
    return [
        PrefixSimilarity(
            attention,
            tuple(layer for layer, _, _ in layers),
            torch.stack([keys for _, keys, _ in layers]).cpu(),
            torch.stack([values for _, _, values in layers]).cpu(),
        )
        for attention, layers in grouped.items()
    ]


def share_correlation(first: AttentionShare, second: AttentionShare) -> float:
    """Pearson's correlation of two maps of attention shares over all layers and heads.

    nan where all shares of a map are equal. Raises SpecError for maps of different attention.
    """
    first_map, second_map = (
        (share.kind, share.attention, share.layers, share.shares.shape) for share in (first, second)
    )
    if first_map != second_map:
        raise SpecError(
            f"maps of the {first.kind} in {first.attention} and of the {second.kind} in "
            f"{second.attention} do not have the same layers and heads; compare maps of one kind"
        )
    maps = torch.stack((first.shares.flatten(), second.shares.flatten())).double()
    centred = maps - maps.mean(1, keepdim=True)
    norms = centred.norm(dim=1)
    if not bool((norms > 1e-9).all()):
        return float("nan")
    return float((centred[0] @ centred[1]) / (norms[0] * norms[1]))


def _jaccard(first: set[int], second: set[int]) -> float:
    """The size of the intersection over that of the union; 1 for two empty sets."""
    return len(first & second) / len(first | second) if first | second else 1.0
