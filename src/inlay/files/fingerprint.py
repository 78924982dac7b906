"""Fingerprints: what tells one base, and one tokenizer, from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from inlay.architectures.chart import Chart
from inlay.core.site import Site
from inlay.errors import BaseError, FileError

SAMPLES = 16
"""How many entries of a weight matrix a fingerprint holds."""

PROJECTIONS = (
    *(f"{side}.{part}" for side in ("attn", "cross") for part in ("q", "k", "v", "o")),
    *(f"mlp.{part}" for part in ("up", "gate", "down")),
)


def fingerprint(chart: Chart, brought: Collection[str] = ()) -> dict[str, Any]:
    """The family and the sizes of a base, and entries of its weights at some sites.

    brought: sites of which the file holds the weights itself, so that those of the base may differ.
    """
    sites = [site for site in _sampled_sites(chart) if site.name not in brought]
    return {
        "family": chart.base.config.model_type,
        "depth": [len(stack.layers) for stack in chart.stacks],
        "shape": {site.name: [site.d_in, site.d_out] for site in sites},
        "samples": {site.name: _sample(site) for site in sites},
    }


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A digest of a tokenizer's vocabulary."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:32]


def check_base(path: Path, header: Mapping[str, str], chart: Chart) -> None:
    """Raise BaseError where a file was made for another base than that of `chart`.

    Raises FileError where the fingerprint in the header cannot be read.
    """
    try:
        stored = json.loads(header["base"])
        samples = {name: torch.tensor(values) for name, values in stored["samples"].items()}
        family, depth, shape = stored["family"], stored["depth"], stored["shape"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FileError(f"{path}: the fingerprint of its base cannot be read") from None
    current = fingerprint(chart)
    cure = "load it into that base, or in Python use strict=False"
    for what, before, now in (
        ("family", family, current["family"]),
        ("number of blocks", depth[: len(current["depth"])], current["depth"][: len(depth)]),
    ):
        if before != now:
            raise BaseError(
                f"{path} was made for another base: {what} {before}, here {now}; {cure}"
            )
    for name, sizes in current["shape"].items():
        if name in shape and shape[name] != sizes:
            raise BaseError(
                f"{path} was made for another base: {name} is {shape[name]}, here {sizes}; {cure}"
            )
    common = [name for name in current["samples"] if name in samples]
    if not common:
        raise BaseError(f"{path} was made for another base: no site in common; {cure}")
    for name in common:
        if not _equal_but_rounding(torch.tensor(current["samples"][name]), samples[name]):
            raise BaseError(
                f"{path} was made for another base: the weights at {name} differ; {cure}"
            )


def check_tokenizer(path: Path, header: Mapping[str, str], tokenizer: Any) -> None:
    """Raise BaseError where both the file and the caller name a tokenizer, and they differ."""
    stored = header.get("tokenizer")
    if None not in (tokenizer, stored) and tokenizer_fingerprint(tokenizer) != stored:
        raise BaseError(
            f"{path} was made with another tokenizer; load the tokenizer of its base, "
            "or in Python use strict=False"
        )


def _sampled_sites(chart: Chart) -> list[Site]:
    """Each stack's first, middle and last projection of every kind."""
    sampled = []
    for stack in chart.stacks:
        for role in PROJECTIONS:
            sites = [s for s in chart.sites if s.role == role and s.stack == stack.name]
            if sites:
                numbers = sorted({0, len(sites) // 2, len(sites) - 1})
                sampled += [sites[number] for number in numbers]
    return sampled + [s for s in chart.sites if s.role == "base_head" and s.is_projection]


def _sample(site: Site) -> list[float]:
    weight = site.weight().detach()
    flat = torch.linspace(0, weight.numel() - 1, SAMPLES, dtype=torch.float64).long()
    rows, columns = flat // weight.shape[1], flat % weight.shape[1]
    entries = weight[rows.to(weight.device), columns.to(weight.device)]
    return [round(value, 6) for value in entries.float().tolist()]


def _equal_but_rounding(now: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether two samples are of one base, in whatever dtypes: 8 bits of mantissa are the least."""
    if now.shape != before.shape:
        return False
    return bool(((now - before).abs() <= 2**-7 * before.abs() + 1e-4 * before.std()).all())
