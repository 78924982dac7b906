"""Fingerprints: what tells one base, and one tokenizer, from another.

A base is known by its family, its sizes, and entries of its weights: sixteen of some projections,
by the names of their sites (older files hold no more), and some of every other
tensor that computes its hidden states and logits, by their paths in their stack. What two bases
both have is compared, so that a file made on a causal language model loads into the bare backbone
and into a classifier.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from inlay.architectures.chart import Chart, Stack
from inlay.architectures.logits import output_matrix
from inlay.core.quantised import quantisation
from inlay.core.site import Site
from inlay.errors import BaseError, FileError
from inlay.runtime.container import Container

SAMPLES = 16
"""How many entries of a weight matrix of a site, or of a table of tokens, a fingerprint holds."""

FEW = 4
"""How many entries of any other tensor."""

LAST_ROWS = 16
"""Of how many of the last tokens' rows it holds an entry: tokens are added at the end."""

PROJECTIONS = (
    *(f"{side}.{part}" for side in ("attn", "cross") for part in ("q", "k", "v", "o")),
    *(f"mlp.{part}" for part in ("up", "gate", "down")),
)

Tensors = dict[str, Tensor]


def fingerprint(chart: Chart, brought: Collection[str] = ()) -> dict[str, Any]:
    """The family and the sizes of a base, and entries of its weights at some sites.

    brought: sites of which the file holds the weights itself, so that those of the base may differ.
    """
    sites = [site for site in _sampled_sites(chart) if site.name not in brought]
    replaced = {
        id(tensor)
        for site in chart.sites
        if site.name in brought
        for tensor in site.host.parameters(recurse=False)
    }
    tensors = {name: t for name, t in _tensors(chart).items() if id(t) not in replaced}
    return {
        "family": chart.base.config.model_type,
        "depth": [len(stack.layers) for stack in chart.stacks],
        "vocabulary": chart.vocabulary,
        "quantisation": _quantisation(sites),
        "shape": {site.name: [site.d_in, site.d_out] for site in sites},
        "samples": {site.name: _sample(site) for site in sites},
        "tensors": _entries(tensors, _tables(chart)),
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
        tensors = {n: torch.tensor(v) for n, v in stored.get("tensors", {}).items()}
        family, depth, shape = stored["family"], stored["depth"], stored["shape"]
        vocabulary = int(stored.get("vocabulary", 0))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FileError(f"{path}: the fingerprint of its base cannot be read") from None
    current = fingerprint(chart)
    cure = "load it into that base, or in Python use strict=False"

    def differs(what: str) -> BaseError:
        return BaseError(f"{path} was made for another base: {what}; {cure}")

    for what, before, now in (
        ("family", family, current["family"]),
        ("number of blocks", depth[: len(current["depth"])], current["depth"][: len(depth)]),
    ):
        if before != now:
            raise differs(f"{what} {before}, here {now}")
    if vocabulary and current["vocabulary"] and vocabulary != current["vocabulary"]:
        raise BaseError(
            f"{path} was made for another base: one with {vocabulary} tokens, here are "
            f"{current['vocabulary']}; give it the same tokens (model.resize_token_embeddings), "
            "or in Python use strict=False"
        )
    for name, sizes in current["shape"].items():
        if name in shape and shape[name] != sizes:
            raise differs(f"{name} is {shape[name]}, here {sizes}")
    quantised = stored.get("quantisation")
    if quantised != current["quantisation"]:
        same = tensors and all(
            _equal_but_rounding(torch.tensor(now), tensors[name])
            for name, now in current["tensors"].items()
            if name in tensors
        )
        before, now = (_described(kind) for kind in (quantised, current["quantisation"]))
        if not same:
            raise differs(f"one that was {before}, here it is {now}, with other weights")
        raise BaseError(
            f"{path} was trained on this base {before}, and here it is {now}: its answers would "
            "differ by the rounding of the weights; load the base as in training, or in Python "
            "use strict=False"
        )
    compared = 0
    for before, now in ((samples, current["samples"]), (tensors, current["tensors"])):
        for name in [name for name in now if name in before]:
            compared += 1
            if not _equal_but_rounding(torch.tensor(now[name]), before[name]):
                raise differs(f"the weights at {name} differ")
    if not compared:
        raise differs("no site in common")


def check_tokenizer(path: Path, header: Mapping[str, str], tokenizer: Any) -> None:
    """Raise BaseError where both the file and the caller name a tokenizer, and they differ."""
    stored = header.get("tokenizer")
    if None not in (tokenizer, stored) and tokenizer_fingerprint(tokenizer) != stored:
        raise BaseError(
            f"{path} was made with another tokenizer; load the tokenizer of its base, "
            "or in Python use strict=False"
        )


def _quantisation(sites: Collection[Site]) -> str | None:
    """How the matrices of these sites are quantised; None where they are not."""
    kinds = sorted({kind for site in sites if (kind := site.quantisation) is not None})
    return ", ".join(kinds) or None


def _described(quantisation: str | None) -> str:
    return "unquantised" if quantisation is None else f"quantised to {quantisation}"


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


def _tensors(chart: Chart) -> Tensors:
    """Every tensor of a base that computes its hidden states and logits, each once, by its name.

    Those of a stack are named by their path in it, `decoder.layers.3.input_layernorm.weight`; the
    others by their path in the backbone, `.multi_modal_projector.linear_1.weight`; those of the
    language-model head `head.weight`.
    """
    tensors: Tensors = {}
    seen: set[int] = set()
    head = output_matrix(chart.base)
    after = {part for stack in chart.stacks for part in _after_blocks(stack)} - {head}
    for part in chart.base.modules():
        after |= set(part.modules()) if isinstance(part, Container) else set()
    parts = [(f"{stack.name}.", stack.module) for stack in chart.stacks]
    parts += [(".", chart.base.base_model), *([] if head is None else [("head.", head)])]
    for prefix, root in parts:
        for path, module in root.named_modules():
            if module in after:
                continue
            for name, tensor in _own_tensors(module):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    tensors[f"{prefix}{path}.{name}" if path else f"{prefix}{name}"] = tensor
    return tensors


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a module itself keeps, those that are numbers and can be read."""
    named = {**module._parameters, **module._buffers}
    if quantisation(module) is not None:  # its matrix is compared at its sites
        del named["weight"]
    for name, tensor in named.items():
        stored = name not in module._non_persistent_buffers_set
        if tensor is None or not stored or tensor.device.type == "meta":
            continue
        if tensor.is_floating_point() and tensor.numel():
            yield name, tensor


def _after_blocks(stack: Stack) -> Iterator[nn.Module]:
    """The modules of a stack that only pool its last hidden state: projections after the blocks.

    They are not compared, because a base without them may be given random ones. Where a position
    sees those before it nothing is pooled; Gemma 3n has projections there that its blocks need.
    """
    if stack.causal:
        return
    passed, last = False, stack.layers[-1]
    inside = set(last.modules())
    for module in stack.module.modules():
        passed = passed or module is last
        if passed and module not in inside and isinstance(module, (nn.Linear, Conv1D)):
            yield module


def _tables(chart: Chart) -> set[int]:
    """The ids of the tensors with a row for each token."""
    modules = [stack.embed for stack in chart.stacks] + [output_matrix(chart.base)]
    return {id(module.weight) for module in modules if module is not None}


def _entries(tensors: Tensors, tables: set[int]) -> dict[str, list[float]]:
    """Some entries of each tensor: the same of every base, read from each device at once."""
    chosen: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        entries = _chosen(tensor.detach(), table=id(tensor) in tables)
        chosen.setdefault(tensor.device, []).append((name, entries.float()))
    result: dict[str, list[float]] = {}
    for named in chosen.values():
        values = torch.cat([entries for _, entries in named]).tolist()
        start = 0
        for name, entries in named:
            result[name] = [float(f"{v:.5g}") for v in values[start : start + len(entries)]]
            start += len(entries)
    return {name: result[name] for name in tensors}


def _chosen(tensor: Tensor, *, table: bool) -> Tensor:
    """Entries of a tensor, in one dimension: spread evenly, the first and the last among them."""
    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.contiguous().view(-1)
    count = min(SAMPLES if table else FEW, len(flat))
    places = [(len(flat) - 1) * n // max(count - 1, 1) for n in range(count)]
    if table:
        width = tensor.shape[-1]
        rows = range(max(0, len(tensor) - LAST_ROWS), len(tensor))
        places += [row * width + 7 * row % width for row in rows]
    return flat[torch.tensor(places, device=tensor.device)]


def _equal_but_rounding(now: Tensor, before: Tensor) -> bool:
    """Whether two samples are of one base, in whatever dtypes: 8 bits of mantissa are the least."""
    if now.shape != before.shape:
        return False
    finite = before.isfinite()
    size = before[finite].abs().max() if finite.any() else before.new_zeros(())
    close = (now - before).abs() <= 2**-7 * before.abs() + 1e-4 * size
    same = torch.where(finite, close, (now == before) | (now.isnan() & before.isnan()))
    return bool(same.all())  # bounds that bound nothing are infinite
