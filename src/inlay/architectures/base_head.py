"""The layers of a base's own task head: what stands behind the blocks and belongs to a task.

A `...ForSequenceClassification` base has a classifier, often with a dense layer or a pooler before
it. The description of a family ends with the backbone, so they are found by where they stand:
modules are declared in the order in which they run, and these come after the last block, outside
the module that holds the blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from inlay.architectures.chart import Stack
from inlay.architectures.paths import own_modules
from inlay.core.site import Site, stored_transposed

LOADED = "_is_hf_initialized"
"""The mark that transformers puts on every parameter for which a checkpoint held values."""

ROLE = "base_head"


def base_head_sites(
    model: PreTrainedModel, stacks: Sequence[Stack], sites: Iterable[Site]
) -> list[Site]:
    """The sites of the layers of a base's own head; none for a bare backbone.

    stacks, sites: all others of the base.
    """
    if model.base_model is model:
        return []
    paths = {module: path for path, module in own_modules(model).items()}
    blocks = [paths[layer] for stack in stacks for layer in stack.layers]
    backbone = paths[model.base_model]
    holders = {path.rsplit(".", 2)[0] for path in blocks} - {backbone}
    if stacks[-1].causal:
        holders.add(backbone)  # it pools nothing: what it has behind its blocks is a part of it
    norms = {m for m in model.base_model.modules() if isinstance(m, nn.LayerNorm)}
    others = {*(site.host for site in sites), *norms, model.get_output_embeddings()}
    order = list(paths)
    behind = order[order.index(stacks[-1].layers[-1]) + 1 :]
    return [
        _site(paths[module], module, stacks[-1].name)
        for module in behind
        if isinstance(module, nn.Linear | Conv1D | nn.LayerNorm)
        and module not in others
        and not any(paths[module].startswith(f"{path}.") for path in (*blocks, *holders))
    ]


def never_trained(model: PreTrainedModel, sites: Iterable[Site]) -> tuple[str, ...]:
    """The paths of the layers of a base's own head for which loading found no weights.

    A model that was not loaded, or was copied since, does not tell: then there are none.
    """
    if not _was_loaded(model):
        return ()
    return tuple(
        site.name.removesuffix(f".{ROLE}")
        for site in sites
        if site.role == ROLE and not any(map(_is_loaded, site.host.parameters()))
    )


def never_trained_otherwise(model: PreTrainedModel, sites: Iterable[Site]) -> tuple[str, ...]:
    """The other parameters outside the backbone for which loading found no values.

    Those of the output embeddings are left out: resizing a vocabulary makes new ones too.
    """
    if not _was_loaded(model):
        return ()
    known = [model.base_model, model.get_output_embeddings()]
    known += [site.host for site in sites if site.role == ROLE]
    others = {p for module in known if module is not None for p in module.parameters()}
    return tuple(
        f"{path}.{name}"
        for path, module in own_modules(model).items()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter not in others and not _is_loaded(parameter)
    )


def _was_loaded(model: PreTrainedModel) -> bool:
    own = own_modules(model).values()
    return any(_is_loaded(parameter) for module in own for parameter in module.parameters())


def _site(path: str, module: nn.Module, stack: str) -> Site:
    assert isinstance(module.weight, nn.Parameter)
    sizes = module.weight.shape
    d_out, d_in = sizes[0], sizes[-1]
    if stored_transposed(module):
        d_out, d_in = d_in, d_out
    return Site(f"{path}.{ROLE}", ROLE, module, d_in, d_out, stack)


def _is_loaded(parameter: nn.Parameter) -> bool:
    return LOADED in vars(parameter)
