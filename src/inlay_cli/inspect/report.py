"""What was measured: one report, which a terminal, a page and a JSON file show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inlay_cli.inspect.readings import as_entry

if TYPE_CHECKING:
    from inlay.inspect import (
        AttentionShare,
        MatchedPrompts,
        NearestTokens,
        Neighbours,
        PlaceReading,
        PrefixSimilarity,
        Score,
    )

VIRTUAL_SIGN = "◆"
"""What stands for a virtual token in a text that is shown."""


@dataclass(frozen=True)
class Comparison:
    """A second file, compared with the first.

    correlations: between the attention maps of both files, in the order of the first file's
    shares; None if the second file has no such map, nan if a map is constant.
    """

    file: str
    method: str
    prompts: list[MatchedPrompts]
    prefixes: list[PrefixSimilarity]
    shares: list[AttentionShare]
    correlations: list[float | None]


@dataclass(frozen=True)
class Report:
    """Everything that was measured.

    texts, template: the texts that it was measured on, and how a row is written as one.
    """

    base: str
    file: str
    method: str
    prompts: list[Neighbours]
    shares: list[AttentionShare]
    readings: list[PlaceReading]
    texts: list[str]
    template: str
    tokenizer: Any
    comparison: Comparison | None = None

    @property
    def measured(self) -> str:
        """What it was measured on, in words."""
        texts = f"{len(self.texts)} {'text' if len(self.texts) == 1 else 'texts'}"
        as_is = self.template in ("{text}", "{source}")
        return texts if as_is else f"{texts}, written {self.template!r}"

    def token(self, number: int) -> str:
        """A readable form of a token: spaces are ␣, and unprintable characters are escaped."""
        raw = self.tokenizer.convert_ids_to_tokens(number)
        if raw is None:
            return f"#{number}"
        text = self.tokenizer.decode([number], clean_up_tokenization_spaces=False)
        if not text or "\N{REPLACEMENT CHARACTER}" in text:
            text = raw
        if raw.startswith("▁") and not text.startswith((" ", "▁")):
            text = " " + text  # some decoders drop the space that begins a text
        visible = text.replace(" ", "␣").replace("▁", "␣")
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in visible)


def as_json(report: Report) -> dict[str, Any]:
    """The whole report as JSON can hold it; numbers that are not finite become null."""
    content: dict[str, Any] = {
        "base": report.base,
        "file": report.file,
        "method": report.method,
        "prompts": [_prompt(report, prompt) for prompt in report.prompts],
        "texts": report.texts,
        "template": report.template,
        "attention": [_share(share) for share in report.shares],
        "readings": [as_entry(reading) for reading in report.readings],
    }
    comparison = report.comparison
    if comparison is not None:
        content["other"] = {
            "file": comparison.file,
            "method": comparison.method,
            "prompts": [_matched(matched) for matched in comparison.prompts],
            "prefixes": [
                {
                    "attention": prefix.attention,
                    "layers": list(prefix.layers),
                    "keys": prefix.keys.tolist(),
                    "values": prefix.values.tolist(),
                }
                for prefix in comparison.prefixes
            ],
            "attention": [_share(share) for share in comparison.shares],
            "correlations": [None if c is None else _finite(c) for c in comparison.correlations],
        }
    return content


def _prompt(report: Report, prompt: Neighbours) -> dict[str, Any]:
    def nearest(near: NearestTokens, position: int, measure: str) -> list[dict[str, Any]]:
        pairs = zip(near.ids[position].tolist(), near.values[position].tolist(), strict=True)
        return [{"id": id_, "token": report.token(id_), measure: value} for id_, value in pairs]

    return {
        "place": prompt.place,
        "positions": [
            {
                "norm": float(vector.norm()),
                "by_cosine": nearest(prompt.cosine, number, "cosine"),
                "by_distance": nearest(prompt.distance, number, "distance"),
            }
            for number, vector in enumerate(prompt.vectors)
        ],
        "shared": [
            {"id": token, "token": report.token(token), "positions": positions}
            for token, positions in prompt.shared.items()
        ],
        "words": {
            word: {"ranks": ranks.tolist(), "cosines": prompt.cosines[word].tolist()}
            for word, ranks in prompt.ranks.items()
        },
        "cluster": {
            "nearest": _score(prompt.cluster.nearest),
            "tightness": _score(prompt.cluster.tightness),
        },
    }


def _matched(matched: MatchedPrompts) -> dict[str, Any]:
    return {
        "place": matched.place,
        "pairs": [list(pair) for pair in matched.pairs],
        "cosines": list(matched.cosines),
        "overlaps": list(matched.overlaps),
        "overlap": matched.overlap,
    }


def _share(share: AttentionShare) -> dict[str, Any]:
    return {
        "of": share.kind,
        "attention": share.attention,
        "layers": list(share.layers),
        "shares": share.shares.tolist(),
        "even": share.uniform.tolist(),
    }


def _score(score: Score | None) -> dict[str, float | None] | None:
    if score is None:
        return None
    return {
        "value": _finite(score.value),
        "random": _finite(score.random),
        "spread": _finite(score.spread),
        "ratio": _finite(score.ratio),
        "z": _finite(score.z),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def title(share: AttentionShare) -> str:
    """The heading of an attention map."""
    kind = {
        "encoder.attn": "the encoder's self-attention",
        "decoder.attn": "the decoder's self-attention",
        "decoder.cross": "cross-attention",
    }
    return f"Attention on the {share.kind}, in {kind.get(share.attention, share.attention)}"


def summary(share: AttentionShare) -> str:
    """The mean of an attention map, and what equal attention would give."""
    mean, even = float(share.shares.mean()), float(share.uniform.mean())
    return (
        f"{percent(mean)} on average; equal attention to all positions would give {percent(even)}"
    )


def closeness(prompt: Neighbours) -> list[str]:
    """How close a prompt is to tokens, in sentences."""
    k = prompt.cosine.ids.shape[1]
    nearest = _against_random(prompt.cluster.nearest)
    lines = [f"Cosine of a position to its nearest token: {nearest}."]
    if prompt.cluster.tightness is not None:
        tightness = _against_random(prompt.cluster.tightness)
        lines.append(f"Cosine between two of its {k} nearest tokens: {tightness}.")
    return lines


def _against_random(score: Score) -> str:
    facts = [f"random directions {score.random:.3f}"]
    facts += [f"ratio {score.ratio:.1f}"] if math.isfinite(score.ratio) else []
    facts += [f"z {score.z:.1f}"] if math.isfinite(score.z) else []
    return f"{score.value:.3f} on average ({', '.join(facts)})"


def word_ranks(prompt: Neighbours) -> list[tuple[str, str, str, str, str]]:
    """(word, best rank, its position, the cosine there, positions with the word in their list)."""
    rows = []
    k = prompt.cosine.ids.shape[1]
    for word, ranks in prompt.ranks.items():
        best = int(ranks.argmin())
        positions = [str(number) for number, rank in enumerate(ranks.tolist()) if rank <= k]
        cosine = f"{float(prompt.cosines[word][best]):.3f}"
        rows.append((word, f"{int(ranks[best]):,}", str(best), cosine, ", ".join(positions) or "–"))
    return rows


def agreement(comparison: Comparison, shares: Sequence[AttentionShare]) -> list[str]:
    """How far two files agree, in sentences."""
    lines = []
    for matched in comparison.prompts:
        count = max(len(matched.cosines), 1)
        lines.append(
            f"{matched.place}: paired positions have cosine {sum(matched.cosines) / count:.3f} on "
            f"average, and share {percent(sum(matched.overlaps) / count)} of their nearest tokens; "
            f"of all tokens near either prompt, {percent(matched.overlap)} are near both."
        )
    for prefix in comparison.prefixes:
        lines.append(
            f"{prefix.attention}: on average keys have cosine {float(prefix.keys.mean()):.3f} and "
            f"values {float(prefix.values.mean()):.3f}."
        )
    for share, correlation in zip(shares, comparison.correlations, strict=True):
        if correlation is not None:
            lines.append(f"{title(share)}: the two maps have correlation {correlation:.3f}.")
    return lines or ["The two files have no prompt or prefix at the same place to compare."]


def percent(share: float) -> str:
    """0.0312 -> 3.1%."""
    return f"{100 * share:.1f}%"


def short(value: float) -> str:
    """A cosine or a distance, to about three digits."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
