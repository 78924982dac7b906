"""The vectors of prompts among the embeddings of the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from inlay.core.context import PassContext
from inlay.core.piece import ExtraKV, PromptVectors, VirtualTokens
from inlay.core.site import Site
from inlay.errors import SpecError
from inlay.handle import Inlay
from inlay.runtime.container import stack_hooks

CHUNK = 8192
"""Tokens of the vocabulary that are embedded at a time."""

DRAWS = 16
"""Random prompts that a prompt is held against."""


@dataclass(frozen=True)
class Near:
    """The tokens nearest to every position: ids and values `[P, k]`, the nearest first."""

    ids: Tensor
    values: Tensor


@dataclass(frozen=True)
class Score:
    """A mean over the positions of a prompt, beside the same of random prompts.

    value: the prompt's own. random, spread: mean and standard deviation over `DRAWS` prompts of
    as many vectors, whose directions are drawn uniformly (their lengths matter to no cosine).
    """

    value: float
    random: float
    spread: float

    @property
    def ratio(self) -> float:
        """value / random."""
        return self.value / self.random if self.random else float("nan")

    @property
    def z(self) -> float:
        """(value - random) / spread: standard deviations above what chance gives."""
        return (self.value - self.random) / self.spread if self.spread else float("nan")


@dataclass(frozen=True)
class Cluster:
    """Whether a prompt lies where words are.

    nearest: the cosine of a position to its nearest token, mean over positions.
    tightness: the cosine between two of the k tokens nearest to a position, mean over pairs, then
    over positions: high where a position stands in one family of words. None for k = 1.
    """

    nearest: Score
    tightness: Score | None


@dataclass(frozen=True)
class Neighbours:
    """One piece among the tokens.

    place: the key of the piece, such as `embed/0`. vectors `[P, D]`. cosine: the k tokens of the
    highest cosine; distance: those of the smallest Euclidean distance. ranks: word -> `[P]`, the
    place of its nearest form in the order of all tokens by cosine, 1 = nearest; cosines: word ->
    `[P]`, that form's cosine.
    """

    place: str
    vectors: Tensor
    cosine: Near
    distance: Near
    ranks: dict[str, Tensor]
    cosines: dict[str, Tensor]
    cluster: Cluster

    @property
    def shared(self) -> dict[int, list[int]]:
        """Tokens among the nearest by cosine of several positions -> these positions."""
        found: dict[int, list[int]] = {}
        for position, ids in enumerate(self.cosine.ids.tolist()):
            for token in ids:
                found.setdefault(token, []).append(position)
        several = [(token, where) for token, where in found.items() if len(where) > 1]
        return dict(sorted(several, key=lambda one: -len(one[1])))


def check_soft(handle: Inlay) -> None:
    """Raise SpecError where an inlay has neither vectors nor keys to look into."""
    if not any(
        isinstance(piece, (PromptVectors, VirtualTokens, ExtraKV))
        for piece in (placed.piece for placed in handle.placed)
    ):
        raise SpecError(
            f"{handle.spec!r} has no soft prompt or prefix to look into; "
            "inspect takes what a method such as Prompt or Prefix has made"
        )


def vectors_of(handle: Inlay) -> list[tuple[str, Site, Tensor]]:
    """(key, site, vectors `[P, D]` in fp32) of every piece in the space of the embeddings."""
    _renew(handle)
    kinds = (PromptVectors, VirtualTokens)
    placed = [p for p in handle.placed if isinstance(p.piece, kinds)]
    return [(p.name, p.site, p.piece().detach().float()) for p in placed]


def keys_of(handle: Inlay) -> list[tuple[str, Site, Tensor, Tensor]]:
    """(key, site, k, v) of every piece of keys; k and v `[H, P, K]` in fp32."""
    _renew(handle)
    pairs = []
    for placed in handle.placed:
        if isinstance(placed.piece, ExtraKV):
            x = torch.zeros(1, 1, placed.site.d_in, device=placed.site.device())
            k, v = placed.piece(x, PassContext())
            pairs.append((placed.name, placed.site, k.detach().float(), v.detach().float()))
    return pairs


def _renew(handle: Inlay) -> None:
    """What several pieces share is computed anew: it may have learned since the last pass."""
    for stack in stack_hooks(handle.model):
        for once in stack.once.get(handle.name, ()):
            once.renew()


def forms(tokenizer: Any, word: str) -> tuple[int, ...]:
    """The tokens that are this word alone: as it is, with a capital, behind a space or not.

    Empty where the word takes several tokens in every form.
    """
    found: dict[int, None] = {}
    for text in (word, word.lower(), word.capitalize()):
        for lead in ("", " "):
            ids = tokenizer.encode(lead + text, add_special_tokens=False)
            if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
                found[int(ids[0])] = None
    return tuple(found)


def neighbours(
    handle: Inlay,
    k: int = 5,
    words: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> list[Neighbours]:
    """The tokens near every position of every prompt and virtual token of an inlay.

    Positions are held against what the embedding module puts out for every id, for some families
    scale inside of it. words: word -> ids of its forms, see `forms`. seed: of the random prompts.

    Empty for an inlay without prompts. Raises SpecError for k < 1 or an id that does not exist.
    """
    if k < 1:
        raise SpecError(f"there are no {k} nearest tokens; ask for at least 1")
    with torch.no_grad():
        found = vectors_of(handle)
        return [_among(key, site, one, k, words or {}, seed) for key, site, one in found]


def _among(
    key: str, site: Site, vectors: Tensor, k: int, words: Mapping[str, Sequence[int]], seed: int
) -> Neighbours:
    k = min(k, site.d_in)
    for word, ids in words.items():
        if not ids or not all(0 <= number < site.d_in for number in ids):
            raise SpecError(f"{word!r} has token ids {list(ids)}, outside {site.d_in} tokens")
    count = len(vectors)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(DRAWS * count, vectors.shape[1], generator=generator)
    ours, chance = F.normalize(vectors, dim=-1), F.normalize(drawn, dim=-1).to(vectors)
    cosines, distances, best = [], [], None
    for first, table in _embedded(site):
        unit = F.normalize(table, dim=-1)
        cosines.append(ours @ unit.T)
        # the quick way through products loses the small distances
        distances.append(torch.cdist(vectors, table, compute_mode="donot_use_mm_for_euclid_dist"))
        best = _merged(best, chance @ unit.T, first, k)
    assert best is not None
    cosine, distance = torch.cat(cosines, 1), torch.cat(distances, 1)
    near = Near(*reversed(cosine.topk(k)))
    held = {word: cosine[:, list(ids)].amax(1) for word, ids in words.items()}
    ranks = {word: 1 + (cosine > one[:, None]).sum(1) for word, one in held.items()}
    by_chance = Near(best[1], best[0])
    cluster = Cluster(
        _score(near.values[:, 0], by_chance.values[:, 0], count),
        _score(_mutual(site, near.ids), _mutual(site, by_chance.ids), count) if k > 1 else None,
    )
    far = Near(*reversed(distance.topk(k, largest=False)))
    return Neighbours(key, vectors, near, far, ranks, held, cluster)


def _embedded(site: Site) -> Iterator[tuple[int, Tensor]]:
    """(first id, vectors `[n, D]`) of the whole vocabulary, as the embedding module gives them."""
    for first in range(0, site.d_in, CHUNK):
        ids = torch.arange(first, min(first + CHUNK, site.d_in), device=site.device())
        yield first, site.host.forward(ids).float()


def _merged(
    best: tuple[Tensor, Tensor] | None, cosines: Tensor, first: int, k: int
) -> tuple[Tensor, Tensor]:
    """The k best (values, ids) of those before and one more chunk."""
    values, ids = cosines.topk(min(k, cosines.shape[1]))
    ids = ids + first
    if best is not None:
        values, ids = torch.cat((best[0], values), 1), torch.cat((best[1], ids), 1)
    values, order = values.topk(min(k, values.shape[1]))
    return values, ids.gather(1, order)


def _mutual(site: Site, ids: Tensor) -> Tensor:
    """The mean cosine between two different tokens of every row: ids `[N, k]` -> `[N]`."""
    means = []
    for row in ids:
        unit = F.normalize(site.host.forward(row).float(), dim=-1)
        k = len(row)
        means.append(((unit @ unit.T).sum() - unit.square().sum()) / (k * (k - 1)))
    return torch.stack(means)


def _score(ours: Tensor, chance: Tensor, count: int) -> Score:
    means = chance.view(DRAWS, count).mean(1)
    return Score(float(ours.mean()), float(means.mean()), float(means.std()))
