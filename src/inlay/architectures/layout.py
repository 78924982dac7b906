"""How a family of architectures is described: Family, Layout and the kinds of Place.

Data, about ten lines a family; `charts/` holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from inlay.errors import SiteError


@dataclass(frozen=True)
class Sub:
    """A sub-layer: the module whose input is x, and the module whose output is added to x."""

    enter: str
    leave: str


@dataclass(frozen=True)
class Fused:
    """One of several projections in one matrix: number `index` of `of`.

    per_head: the matrix interleaves them head by head (GPT-NeoX).
    grouped:  queries come first and are `num_key_value_groups` times as wide as keys and values.
    """

    path: str
    index: int
    of: int
    per_head: bool = False
    grouped: bool = False


Place = str | tuple[str, ...] | Sub | Fused
"""Where a part is: a path, the first of several paths that exists, or one of the above."""


@dataclass(frozen=True)
class Layout:
    """The parts of one stack of blocks, as paths.

    path:   from the backbone to the stack, the module whose forward takes ids and masks.
    layers: from the stack to the list of blocks. embed: to the input embeddings.
    block:  role -> path from a block. core, cross: the modules that call the attention.
    norms:  role -> path from the stack, for norms outside the blocks.
    closing: in a post-norm family, the norm whose output is the block's.
    width:  the attribute of an attention module that holds the head width.
    first_stays: a head reads position 0, so slots go behind it.
    """

    stack: str
    path: str
    layers: str
    embed: str | None
    block: Mapping[str, Place]
    core: str | None = None
    cross: str | None = None
    norms: Mapping[str, str] = field(default_factory=dict)
    closing: str | None = None
    width: str = "head_dim"
    causal: bool = True
    first_stays: bool = False


def plain_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The output embeddings, and nothing else."""
    return output_head(model)(hidden)


def output_head(model: PreTrainedModel) -> nn.Module:
    """The language-model head. Raises SiteError where the model has none."""
    head = model.get_output_embeddings()
    if head is None:
        raise SiteError(
            f"{type(model).__name__} has no language-model head; load the model with "
            "AutoModelForCausalLM (or Seq2SeqLM, MaskedLM), or train a Head"
        )
    return head


def zero(config: Any) -> int:
    """Positions are counted from 0."""
    return 0


@dataclass(frozen=True)
class Family:
    """A family of architectures that share one layout.

    logits:     how the family turns hidden states into logits.
    plain_head: logits are one linear map followed by elementwise functions at most.
    position_start: the position id of a text's first token.
    absolute:   positions are looked up in a table, which ends.
    ahead:      what stands before a text acts on it through attention and positions alone, which
                the stack is given (`position_ids`): the front may run apart (`ports.front`).
    """

    types: tuple[str, ...]
    layouts: tuple[Layout, ...]
    logits: Callable[[PreTrainedModel, Tensor], Tensor] = plain_logits
    plain_head: bool = True
    position_start: Callable[[Any], int] = zero
    absolute: bool = False
    ahead: bool = False


def reaches(backbone: nn.Module, layout: Layout) -> bool:
    """Whether a layout's stack and blocks are where it says."""
    stack = child(backbone, layout.path)
    return stack is not None and isinstance(child(stack, layout.layers), nn.ModuleList)


def child(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path, or None where there is none."""
    for step in path.split(".") if path else ():
        following = module._modules.get(step)
        if following is None:
            return None
        module = following
    return module
