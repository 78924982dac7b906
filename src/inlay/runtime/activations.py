"""Running a text through the bare base, for starting values: its own keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from inlay.architectures.chart import Chart
from inlay.core.modes import evaluating
from inlay.core.site import Site
from inlay.errors import InlayError, PortError, SpecError
from inlay.runtime import attention
from inlay.runtime.container import changing, container_of
from inlay.runtime.extra_kv import AttentionPass, SiteExtraKV
from inlay.runtime.port import StackState
from inlay.runtime.routing import Routing

KeysAndValues = dict[str, tuple[Tensor, Tensor]]


def keys_and_values(chart: Chart, ids: Sequence[int]) -> KeysAndValues:
    """The bare base's own keys and values of a text: site name -> (k, v), each `[H, T, K]`.

    In an encoder–decoder the text is both source and target. A text that is longer than the base
    reads at once is read in parts. Positions that a base puts around the text by itself (a `[CLS]`
    that is no token) are left out; so are attentions that do not see each token at a position of
    its own.

    Raises PortError for a base without text, SpecError for an id outside its vocabulary.
    """
    size = chart.max_length(chart.base) or len(ids)
    parts = [_read(chart, ids[start : start + size]) for start in range(0, len(ids), size)]
    return {
        name: (torch.cat([part[name][0] for part in parts], 1),
               torch.cat([part[name][1] for part in parts], 1))
        for name in parts[0]
        if all(name in part for part in parts)
    }  # fmt: skip


def _read(chart: Chart, ids: Sequence[int]) -> KeysAndValues:
    """The same for a text that the base reads at once."""
    model, vocabulary = chart.base, chart.stacks[0].vocabulary
    if not chart.reads_text:
        raise PortError(f"{type(model).__name__} reads no words, so none can be run through it")
    for number in ids:
        if not 0 <= number < vocabulary:
            raise SpecError(f"token id {number} is outside the vocabulary of {vocabulary}")
    record = _recorded(chart, ids)
    sites = {site.name: site for site in chart.sites if site.name in record}
    if any(k.shape[1] != len(ids) for k, _ in record.values()):
        others = _recorded(chart, [(number + 1) % vocabulary for number in ids])
        record = _of_words(record, others, sites)
    return {name: pair for name, pair in record.items() if _fits(*pair, sites[name], len(ids))}


def _of_words(
    record: KeysAndValues, others: KeysAndValues, sites: Mapping[str, Site]
) -> KeysAndValues:
    """Keys and values without those of positions that the base adds to a text by itself.

    record: of a text. others: of one of equal length whose tokens are all different, which shows
    where the words stand: the first block computes the same wherever there is none of them. What
    a cross-attention reads are the positions of the first stack.
    """
    words: dict[str, Tensor] = {}  # by stack, where its first attention sees them
    for name, site in sites.items():
        if site.role == "attn.kv" and site.stack not in words:
            k, other = record[name][0], others[name][0]
            same = torch.isclose(k, other).all(-1).all(0) if k.shape == other.shape else None
            words[site.stack] = torch.arange(0) if same is None else (~same).nonzero().flatten()
    source = next(iter(words.values()), torch.arange(0))
    picked: KeysAndValues = {}
    for name, (k, v) in record.items():
        places = words[sites[name].stack] if sites[name].role == "attn.kv" else source
        picked[name] = k.index_select(1, places), v.index_select(1, places)
    return picked


def _fits(k: Tensor, v: Tensor, site: Site, length: int) -> bool:
    """Whether these are keys and values of so many words, one each."""
    shapes = [(site.heads, length, width) for width in (site.head_dim, site.value_dim)]
    return [k.shape, v.shape] == shapes


def _recorded(chart: Chart, ids: Sequence[int]) -> KeysAndValues:
    """What every attention is given as keys and values in a pass over one text."""
    model = chart.base
    text = torch.tensor([list(ids)], device=model.device)
    inputs: dict[str, Any] = {"input_ids": text}
    if chart.kind == "encoder-decoder":
        inputs["decoder_input_ids"] = text
    with _bare(chart), _recording(chart) as record, evaluating(model):
        try:
            chart.last_hidden_state(model, **inputs)
        except InlayError:
            raise
        except Exception as error:
            raise PortError(
                f"{type(model).__name__} does not run on words alone ({type(error).__name__}: "
                f"{error!s:.80}), so no prefix can start from them; use start=None"
            ) from None
    return {name: (k[0].clone(), v[0].clone()) for name, (k, v) in record.items()}


@contextmanager
def _bare(chart: Chart) -> Iterator[None]:
    """Inside, no attached inlay serves any row."""
    container = container_of(chart.base)
    if container is None:
        yield
        return
    requested = container.routing.requested
    with changing(chart.base):  # the recording stands where others' extra keys are asked for
        try:
            container.routing.request([None])
            yield
        finally:
            container.routing.restore(requested)


@contextmanager
def _recording(chart: Chart) -> Iterator[KeysAndValues]:
    """Inside, every attention records the keys and values that it receives, by site."""
    record: KeysAndValues = {}
    attention_pass = AttentionPass()
    attention_pass.record = record
    sites = [site for site in chart.sites if site.heads and attention.has_port(site.host)]
    before = {site.name: vars(site.host).get(attention.EXTRA_KV) for site in sites}
    attention.check_implementation(attention.configs(chart.base))
    try:
        for site in sites:
            state = StackState(chart, chart.stack(site.stack), Routing(), None)
            attention.redirect(site.host, SiteExtraKV(site, state, attention_pass))
        yield record
    finally:
        for site in sites:
            if before[site.name] is None:
                attention.restore(site.host)
            else:
                attention.redirect(site.host, before[site.name])
