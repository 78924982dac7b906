"""What `inlay inspect` has found: one report, which a terminal, a page and a file show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inlay.inspect import AttentionShare, MatchedPrompts, Neighbours, PrefixSimilarity, Score


@dataclass(frozen=True)
class Second:
    """Another file beside the first.

    correlations: of the maps that both have, in the order of the first file's shares; None where
    there is no such map, nan where one is constant.
    """

    file: str
    method: str
    prompts: list[MatchedPrompts]
    prefixes: list[PrefixSimilarity]
    shares: list[AttentionShare]
    correlations: list[float | None]


@dataclass(frozen=True)
class Report:
    """Everything that was asked for.

    texts, template: how many texts the attention was measured on, and how they were written.
    """

    base: str
    file: str
    method: str
    prompts: list[Neighbours]
    shares: list[AttentionShare]
    texts: int
    template: str
    tokenizer: Any
    second: Second | None = None

    @property
    def measured(self) -> str:
        """On what the attention was measured, in words."""
        many = f"{self.texts} {'text' if self.texts == 1 else 'texts'}"
        plain = self.template in ("{text}", "{source}")
        return many if plain else f"{many}, written {self.template!r}"

    def token(self, number: int) -> str:
        """A token as one can read it: a space is ␣, and what does not print is escaped."""
        raw = self.tokenizer.convert_ids_to_tokens(number)
        if raw is None:
            return f"#{number}"
        text = self.tokenizer.decode([number], clean_up_tokenization_spaces=False)
        if not text or "\N{REPLACEMENT CHARACTER}" in text:
            text = raw
        if raw.startswith("▁") and not text.startswith((" ", "▁")):
            text = " " + text  # some decoders drop the space that begins a text
        shown = text.replace(" ", "␣").replace("▁", "␣")
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)


def as_json(report: Report) -> dict[str, Any]:
    """The whole report, every number of it, as what JSON can hold; null is not a number."""
    second = report.second
    made: dict[str, Any] = {
        "base": report.base,
        "file": report.file,
        "method": report.method,
        "prompts": [_prompt(report, one) for one in report.prompts],
        "texts": report.texts,
        "template": report.template,
        "attention": [_share(one) for one in report.shares],
    }
    if second is not None:
        made["other"] = {
            "file": second.file,
            "method": second.method,
            "prompts": [
                {
                    "place": one.place,
                    "pairs": [list(pair) for pair in one.pairs],
                    "cosines": list(one.cosines),
                    "overlaps": list(one.overlaps),
                    "overlap": one.overlap,
                }
                for one in second.prompts
            ],
            "prefixes": [
                {
                    "attention": one.attention,
                    "layers": list(one.layers),
                    "keys": one.keys.tolist(),
                    "values": one.values.tolist(),
                }
                for one in second.prefixes
            ],
            "attention": [_share(one) for one in second.shares],
            "correlations": [None if c is None else _number(c) for c in second.correlations],
        }
    return made


def _prompt(report: Report, one: Neighbours) -> dict[str, Any]:
    def near(kind: str, position: int) -> list[dict[str, Any]]:
        found = one.cosine if kind == "cosine" else one.distance
        pairs = zip(found.ids[position].tolist(), found.values[position].tolist(), strict=True)
        return [{"id": i, "token": report.token(i), kind: value} for i, value in pairs]

    return {
        "place": one.place,
        "positions": [
            {
                "norm": float(vector.norm()),
                "by_cosine": near("cosine", number),
                "by_distance": near("distance", number),
            }
            for number, vector in enumerate(one.vectors)
        ],
        "shared": [
            {"id": token, "token": report.token(token), "positions": where}
            for token, where in one.shared.items()
        ],
        "words": {
            word: {"ranks": ranks.tolist(), "cosines": one.cosines[word].tolist()}
            for word, ranks in one.ranks.items()
        },
        "cluster": {
            "nearest": _score(one.cluster.nearest),
            "tightness": _score(one.cluster.tightness),
        },
    }


def _share(one: AttentionShare) -> dict[str, Any]:
    return {
        "of": one.kind,
        "attention": one.attention,
        "layers": list(one.layers),
        "shares": one.shares.tolist(),
        "even": one.uniform.tolist(),
    }


def _score(one: Score | None) -> dict[str, float | None] | None:
    if one is None:
        return None
    numbers = (one.value, one.random, one.spread, one.ratio, one.z)
    names = ("value", "random", "spread", "ratio", "z")
    return dict(zip(names, map(_number, numbers), strict=True))


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def title(share: AttentionShare) -> str:
    """What a map is of, in words."""
    kind = {
        "encoder.attn": "the encoder's self-attention",
        "decoder.attn": "the decoder's self-attention",
        "decoder.cross": "cross-attention",
    }
    return f"Attention on the {share.kind}, in {kind.get(share.attention, share.attention)}"


def summary(share: AttentionShare) -> str:
    """The mean of a map, and what even attention would give."""
    mean, even = float(share.shares.mean()), float(share.uniform.mean())
    return (
        f"{percent(mean)} on average; even attention to all that a query sees would give "
        f"{percent(even)}"
    )


def lies(one: Neighbours) -> list[str]:
    """Whether a prompt lies where words are, in sentences."""
    k = one.cosine.ids.shape[1]
    said = [f"Cosine of a position to its nearest token: {_beside(one.cluster.nearest)}."]
    if one.cluster.tightness is not None:
        said.append(
            f"Cosine between two of its {k} nearest tokens: {_beside(one.cluster.tightness)}."
        )
    return said


def _beside(score: Score) -> str:
    much = [f"random directions {score.random:.3f}"]
    much += [f"ratio {score.ratio:.1f}"] if math.isfinite(score.ratio) else []
    much += [f"z {score.z:.1f}"] if math.isfinite(score.z) else []
    return f"{score.value:.3f} on average ({', '.join(much)})"


def ranked(one: Neighbours) -> list[tuple[str, str, str, str, str]]:
    """Word, best rank, its position, the cosine there, and where the word is among the nearest."""
    made = []
    k = one.cosine.ids.shape[1]
    for word, ranks in one.ranks.items():
        best = int(ranks.argmin())
        among = [str(n) for n, rank in enumerate(ranks.tolist()) if rank <= k]
        cosine = f"{float(one.cosines[word][best]):.3f}"
        made.append((word, f"{int(ranks[best]):,}", str(best), cosine, ", ".join(among) or "–"))
    return made


def agreement(second: Second, shares: list[AttentionShare]) -> list[str]:
    """How far two files agree, in sentences."""
    said = []
    for one in second.prompts:
        count = max(len(one.cosines), 1)
        said.append(
            f"{one.place}: paired positions are at cosine {sum(one.cosines) / count:.3f} on "
            f"average, and share {percent(sum(one.overlaps) / count)} of their nearest tokens; "
            f"of all tokens near either prompt, {percent(one.overlap)} are near both."
        )
    for alike in second.prefixes:
        said.append(
            f"{alike.attention}: keys are at cosine {float(alike.keys.mean()):.3f} and values at "
            f"{float(alike.values.mean()):.3f} on average."
        )
    for share, same in zip(shares, second.correlations, strict=True):
        if same is not None:
            said.append(f"{title(share)}: the two maps correlate at {same:.3f}.")
    return said or ["The two have nothing at the same places that could be compared."]


def percent(share: float) -> str:
    """0.0312 -> 3.1%."""
    return f"{100 * share:.1f}%"


def close(value: float) -> str:
    """A cosine or a distance, to about three digits."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
