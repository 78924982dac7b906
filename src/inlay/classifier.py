"""A merged base and its trained head as one of transformers' own classifiers.

transformers has a `...ForSequenceClassification` and a `...ForTokenClassification` for most
families. After the last block they have one linear map, `C h + c`, or two with a function between:

    one linear map        C = W, c = b
    two, f = tanh         tanh(ε W h) / ε, which is W h as long as ε W h is small (ε = 2⁻¹²)
    two, f = relu, gelu   f(W h) − f(−W h), which is W h for every f with f(z) − f(−z) = z

A trained head `W h + b` becomes any of them, where both read the same positions. Which map a family
has, and what it reads, nobody describes: all are tried, and one counts if its logits on drawn
texts, padded ones among them, are those of the head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from inlay.architectures.chart import Chart
from inlay.architectures.resolve import resolve
from inlay.core.modes import evaluating
from inlay.errors import InlayError, MergeError
from inlay.methods.head import Classifier, Head

SMALL = 2.0**-12
"""ε: small enough for tanh(ε z) = ε z in single precision, and a power of two, so it is exact."""

ROWS, LENGTH, PADDING = 4, 9, 3
"""The drawn texts: how many, how long, and how many positions of padding one of them has."""

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""How much logits may differ, relative to the largest; 3e-2 in half precision."""

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]


def classifier_model(
    model: PreTrainedModel,
    head: Classifier,
    *,
    pad_token_id: int | None,
    problem: Problem | None = None,
) -> PreTrainedModel:
    """A model of transformers that gives the logits of a base with a trained head.

    Args:
        model: the base, with everything else merged into it.
        head: the trained head.
        pad_token_id: the token that pads rows, which a decoder's classifier has to know.
        problem: what the classifier learns if it is trained on; None for tokens.

    Raises MergeError, which says why, where transformers has no classifier that computes the same.
    """
    kind = "TokenClassification" if head.each else "SequenceClassification"
    classes = (
        MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
        if head.each
        else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    )
    chart = resolve(model)
    if chart.kind not in ("encoder", "decoder"):
        raise MergeError(f"the classifiers of transformers read an {chart.kind} in another way")
    if type(model.config) not in classes:
        raise MergeError(f"transformers has no ...For{kind} for {type(model).__name__}")
    result = _with_base(model, head, kind, pad_token_id, problem)
    ids, mask = _texts(chart, pad_token_id)
    wanted = _head_logits(chart, head, ids, mask)
    for _ in _head_versions(result, head, ids, mask):
        if _equal(_logits(result, ids, mask), wanted, model.dtype):
            return result
    raise MergeError(_reason(result, chart, head, ids, mask))


def _with_base(
    model: PreTrainedModel, head: Classifier, kind: str, pad: int | None, problem: Problem | None
) -> PreTrainedModel:
    """The classifier of the base's family with the base's weights, and a head that is not set."""
    config = copy.deepcopy(model.config)
    config.num_labels = len(head.labels)
    config.id2label = dict(enumerate(head.labels))
    config.label2id = {label: number for number, label in enumerate(head.labels)}
    config.problem_type = problem
    if config.pad_token_id is None:
        config.pad_token_id = pad
    auto: Any = AutoModelForTokenClassification if head.each else AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        result: PreTrainedModel = auto.from_config(config)
    module: nn.Module = result
    module.to(dtype=model.dtype, device=model.device).eval()
    # A pooler may be missing on either side; whatever else were, the comparison would notice.
    result.base_model.load_state_dict(model.base_model.state_dict(), strict=False)
    return result


def _texts(chart: Chart, pad: int | None) -> tuple[Tensor, Tensor]:
    """Drawn texts `[B, T]`, the last one padded on the right, and their mask."""
    draw = torch.Generator().manual_seed(0)
    vocabulary = chart.stacks[0].vocabulary
    ids = torch.randint(vocabulary, (ROWS, LENGTH), generator=draw)
    if pad is not None:
        ids[ids == pad] = (pad + 1) % vocabulary
    mask = torch.ones_like(ids)
    if pad is not None:
        ids[-1, -PADDING:], mask[-1, -PADDING:] = pad, 0
    device = chart.base.device
    return ids.to(device), mask.to(device)


def _head_logits(chart: Chart, head: Classifier, ids: Tensor, mask: Tensor) -> Tensor:
    """The head's logits at positions with text, `[N, C]`."""
    with evaluating(chart.base):
        states = chart.stacks[0].last_hidden_state(input_ids=ids, attention_mask=mask)
        logits = head(states, mask)
    return logits[mask.bool()] if head.each else logits


def _logits(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """A classifier's logits at positions with text, `[N, C]`."""
    with evaluating(model):
        logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits[mask.bool()] if logits.dim() == 3 else logits


def _equal(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    a, b = a.float(), b.float()
    limit = TOLERANCE.get(dtype, 3e-2) * float(b.abs().max()) + 1e-6
    if a.shape != b.shape:
        return False
    return float((a - b).abs().max()) <= limit


def _head_versions(
    model: PreTrainedModel, head: Classifier, ids: Tensor, mask: Tensor
) -> Iterator[None]:
    """Write the head into the classifier in every way that may be the right one."""
    maps = _final_maps(model, ids, mask)
    weight, classes = head.weight.detach(), len(head.labels)
    bias = weight.new_zeros(classes) if head.bias is None else head.bias.detach()
    if not maps or maps[-1].out_features != classes:
        raise MergeError(f"{type(model).__name__} does not end in a linear map")
    if "bias" not in dict(maps[-1].named_parameters()) and bool(bias.any()):
        raise MergeError(
            f"the classifier of {type(model).__name__} has no bias, and the trained head has one; "
            f"train with {_as_text(head, bias=False)}"
        )
    if len(maps) == 1:
        _write(maps[0], weight, bias)
        yield
    elif len(maps) == 2 and maps[0].in_features == weight.shape[1]:
        identity = torch.eye(classes, device=weight.device)
        if classes <= maps[0].out_features:
            _write(maps[0], weight * SMALL)
            _write(maps[1], identity / SMALL, bias)
            yield
        if 2 * classes <= maps[0].out_features:
            _write(maps[0], torch.cat([weight, -weight]))
            _write(maps[1], torch.cat([identity, -identity], 1), bias)
            yield
    else:
        raise MergeError(f"{type(model).__name__} ends in {len(maps)} linear maps")


def _final_maps(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> list[nn.Linear]:
    """The linear maps that run after the last block, in their order."""
    block = resolve(model).stacks[0].layers[-1]
    order: list[nn.Module] = []
    note: Callable[..., None] = lambda module, args, output: order.append(module)  # noqa: E731
    modules = [block, *(m for m in model.modules() if isinstance(m, nn.Linear))]
    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        _logits(model, ids, mask)
    finally:
        for hook in hooks:
            hook.remove()
    after = order[order.index(block) + 1 :]
    return [module for module in after if isinstance(module, nn.Linear)]


@torch.no_grad()
def _write(module: nn.Linear, weight: Tensor, bias: Tensor | None = None) -> None:
    """Put a matrix into the upper left corner of a linear map, and zeros everywhere else."""
    module.weight.zero_()
    module.weight[: weight.shape[0], : weight.shape[1]] = weight.to(module.weight)
    if module.bias is not None:
        module.bias.zero_()
        if bias is not None:
            module.bias[: len(bias)] = bias.to(module.bias)


def _reason(
    model: PreTrainedModel, chart: Chart, head: Classifier, ids: Tensor, mask: Tensor
) -> str:
    """Why no version of the classifier gives the head's logits."""
    name = type(model).__name__
    if head.each:
        return f"{name} computes something else from the states of tokens than a linear map"
    other = copy.deepcopy(head)
    for pool in _other_pools(head):
        other.pool = pool
        wanted = _head_logits(chart, other, ids, mask)
        for _ in _head_versions(model, other, ids, mask):
            if _equal(_logits(model, ids, mask), wanted, chart.base.dtype):
                return (
                    f"{name} reads the {pool} token, and the trained head reads the "
                    f"{head.pool}{'' if head.pool == 'mean' else ' one'}; train with "
                    f"{_as_text(head, pool=pool)}"
                )
    return f"{name} computes something else from the states than a trained head does"


def _other_pools(head: Classifier) -> Sequence[Literal["mean", "last", "first"]]:
    pools: tuple[Literal["mean", "last", "first"], ...] = ("first", "last", "mean")
    return [pool for pool in pools if pool != head.pool]


def _as_text(head: Classifier, **changes: Any) -> str:
    """A head as it is written in a method, with changes."""
    fields: dict[str, Any] = {"labels": tuple(head.labels), "pool": head.pool}
    return repr(Head(**{**fields, "bias": head.bias is not None, **changes}))


def as_classifier(
    model: PreTrainedModel,
    head: Classifier,
    *,
    pad_token_id: int | None,
    problem: Problem | None = None,
) -> tuple[PreTrainedModel | None, str]:
    """As `classifier_model`, but None and the reason where there is no such classifier."""
    try:
        return classifier_model(model, head, pad_token_id=pad_token_id, problem=problem), ""
    except InlayError as error:
        return None, str(error)
