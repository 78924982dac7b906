"""The tokens of the vocabulary that are nearest to the vectors of a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from inlay.core.site import Site
from inlay.errors import SpecError
from inlay.handle import Inlay
from inlay.inspect.vectors import prompt_vectors

CHUNK = 8192
"""How many tokens of the vocabulary are embedded at a time."""

RANDOM_PROMPTS = 16
"""How many random prompts a prompt is compared with."""


@dataclass(frozen=True)
class NearestTokens:
    """The k tokens nearest to every position: ids and values `[P, k]`, the nearest first.

    values: the cosine, or the Euclidean distance, to each token.
    """

    ids: Tensor
    values: Tensor


@dataclass(frozen=True)
class Score:
    """A mean over the positions of a prompt, and the same mean of random prompts.

    value:  the prompt's mean.
    random: mean over `RANDOM_PROMPTS` prompts of as many vectors, in directions that are drawn
            uniformly (cosines do not depend on their lengths).
    spread: standard deviation over these random prompts.
    """

    value: float
    random: float
    spread: float

    @property
    def ratio(self) -> float:
        """value / random; nan where random is 0."""
        return self.value / self.random if self.random else float("nan")

    @property
    def z(self) -> float:
        """By how many standard deviations the value is above that of random prompts."""
        return (self.value - self.random) / self.spread if self.spread else float("nan")


@dataclass(frozen=True)
class Cluster:
    """Whether a prompt lies where the embeddings of words are.

    nearest:   the cosine of a position to its nearest token, mean over positions.
    tightness: the cosine between two of the k tokens nearest to a position, mean over pairs, then
               over positions. It is high where a position is among words of one kind. None for
               k = 1.
    """

    nearest: Score
    tightness: Score | None


@dataclass(frozen=True)
class Neighbours:
    """The tokens near one prompt, or near the virtual tokens of one piece.

    place:    the key of the piece, such as `embed/0`.
    vectors:  `[P, D]`.
    cosine:   the k tokens of the highest cosine to each position.
    distance: the k tokens of the smallest Euclidean distance to each position.
    ranks:    word -> `[P]`, the rank of its nearest form among all tokens by cosine, from 1 on.
    cosines:  word -> `[P]`, the cosine of that form.
    """

    place: str
    vectors: Tensor
    cosine: NearestTokens
    distance: NearestTokens
    ranks: dict[str, Tensor]
    cosines: dict[str, Tensor]
    cluster: Cluster

    @property
    def shared(self) -> dict[int, list[int]]:
        """Tokens that are among the nearest by cosine of several positions -> these positions."""
        positions: dict[int, list[int]] = {}
        for position, ids in enumerate(self.cosine.ids.tolist()):
            for token in ids:
                positions.setdefault(token, []).append(position)
        several = [(token, where) for token, where in positions.items() if len(where) > 1]
        return dict(sorted(several, key=lambda item: -len(item[1])))


def word_forms(tokenizer: PreTrainedTokenizerBase, word: str) -> tuple[int, ...]:
    """The single tokens that are this word: as given, in lower case, capitalised, after a space.

    Empty where the word takes several tokens in every form.
    """
    forms: dict[int, None] = {}
    for text in (word, word.lower(), word.capitalize()):
        for lead in ("", " "):
            ids = tokenizer.encode(lead + text, add_special_tokens=False)
            if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
                forms[int(ids[0])] = None
    return tuple(forms)


def neighbours(
    handle: Inlay,
    k: int = 5,
    words: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> list[Neighbours]:
    """The tokens near every position of every prompt and virtual token of an inlay.

    k:     how many tokens for each position.
    words: word -> the ids of its forms, see `word_forms`.
    seed:  of the random prompts that the prompt is compared with.

    Positions are compared with what the embedding module returns for every id, since some
    families scale their embeddings inside of it.

    Returns one result per piece; none for an inlay without prompts.

    Raises SpecError for k < 1, and for an id outside the vocabulary.
    """
    if k < 1:
        raise SpecError(f"there are no {k} nearest tokens; ask for at least 1")
    with torch.no_grad():
        return [
            _neighbours(key, site, vectors, k, words or {}, seed)
            for key, site, vectors in prompt_vectors(handle)
        ]


def _neighbours(
    key: str, site: Site, vectors: Tensor, k: int, words: Mapping[str, Sequence[int]], seed: int
) -> Neighbours:
    """The tokens near the vectors `[P, D]` of one piece at the embeddings `site`."""
    k = min(k, site.d_in)
    for word, ids in words.items():
        if not ids or not all(0 <= token < site.d_in for token in ids):
            raise SpecError(
                f"{word!r} has token ids {list(ids)}, but the vocabulary has {site.d_in} tokens; "
                "give the ids that word_forms returns"
            )
    length = len(vectors)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(RANDOM_PROMPTS * length, vectors.shape[1], generator=generator)
    units, random_units = F.normalize(vectors, dim=-1), F.normalize(drawn, dim=-1).to(vectors)
    cosines, distances, best = [], [], None
    for first, table in _embedding_chunks(site):
        table_units = F.normalize(table, dim=-1)
        cosines.append(units @ table_units.T)
        # computed by matrix products, small distances would be lost to rounding
        distances.append(torch.cdist(vectors, table, compute_mode="donot_use_mm_for_euclid_dist"))
        best = _merge_best(best, random_units @ table_units.T, first, k)
    assert best is not None
    cosine, distance = torch.cat(cosines, 1), torch.cat(distances, 1)
    near = NearestTokens(*reversed(cosine.topk(k)))
    of_words = {word: cosine[:, list(ids)].amax(1) for word, ids in words.items()}
    near_random = NearestTokens(best[1], best[0])
    cluster = Cluster(
        _score(near.values[:, 0], near_random.values[:, 0], length),
        _score(_mutual_cosine(site, near.ids), _mutual_cosine(site, near_random.ids), length)
        if k > 1
        else None,
    )
    return Neighbours(
        place=key,
        vectors=vectors,
        cosine=near,
        distance=NearestTokens(*reversed(distance.topk(k, largest=False))),
        ranks={word: 1 + (cosine > values[:, None]).sum(1) for word, values in of_words.items()},
        cosines=of_words,
        cluster=cluster,
    )


def _embedding_chunks(site: Site) -> Iterator[tuple[int, Tensor]]:
    """(first id, embeddings `[n, D]`) over the vocabulary, as the embedding module gives them."""
    for first in range(0, site.d_in, CHUNK):
        ids = torch.arange(first, min(first + CHUNK, site.d_in), device=site.device())
        yield first, site.host.forward(ids).float()


def _merge_best(
    best: tuple[Tensor, Tensor] | None, cosines: Tensor, first: int, k: int
) -> tuple[Tensor, Tensor]:
    """The k highest (cosines, ids) `[N, k]` of earlier chunks and one more.

    best: of the earlier chunks, or None. cosines: `[N, n]` to the n tokens from id `first` on.
    """
    values, ids = cosines.topk(min(k, cosines.shape[1]))
    ids = ids + first
    if best is not None:
        values, ids = torch.cat((best[0], values), 1), torch.cat((best[1], ids), 1)
    values, order = values.topk(min(k, values.shape[1]))
    return values, ids.gather(1, order)


def _mutual_cosine(site: Site, ids: Tensor) -> Tensor:
    """The mean cosine between two different tokens of every row: ids `[N, k]` -> `[N]`."""
    means = []
    for row in ids:
        units = F.normalize(site.host.forward(row).float(), dim=-1)
        k = len(row)
        means.append(((units @ units.T).sum() - units.square().sum()) / (k * (k - 1)))
    return torch.stack(means)


def _score(values: Tensor, random_values: Tensor, length: int) -> Score:
    """Score values `[P]` against those of the random prompts, `[RANDOM_PROMPTS · P]`."""
    means = random_values.view(RANDOM_PROMPTS, length).mean(1)
    return Score(float(values.mean()), float(means.mean()), float(means.std()))
