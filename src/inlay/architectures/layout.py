"""How a family of architectures is described: plain data, about ten lines a family.

A `Family` holds one `Layout` per stack of blocks. A layout says by dotted paths where the parts of
a block are; each path is a `Place`. The files of the families beside this one hold nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from inlay.architectures.logits import plain_logits


@dataclass(frozen=True)
class Sub:
    """A sub-layer of a block.

    enter: path of the module whose input is x, the residual stream that the sub-layer reads; or
           several, of which the first that exists counts.
    leave: path of the module whose output is y, which is added to the residual stream.
    """

    enter: str | tuple[str, ...]
    leave: str


@dataclass(frozen=True)
class Fused:
    """One of several projections that share one matrix.

    path:     path of the module that holds the matrix.
    index:    which of the projections it is, counted from 0.
    count:    how many projections the matrix holds.
    per_head: the matrix holds, for each key-value head, its queries, its key and its value: with as
              many heads for queries as for keys q, k and v of the first head, of the second, …
              (GPT-NeoX, BLOOM), with one key-value head all queries, the key, the value (Falcon).
    grouped:  q comes first and is `num_key_value_groups` times as wide as k and v.
    """

    path: str
    index: int
    count: int
    per_head: bool = False
    grouped: bool = False


@dataclass(frozen=True)
class Experts:
    """The matrices of all experts of a mixture, each a slice of one fused parameter.

    path:      path of the module that holds the parameters and computes all experts.
    parameter: name of its parameter `[E, d_out, d_in]`; its bias is called `…_bias`.
    index, count: which of the projections that share each expert's matrix it is, and of how many;
               gate and up projection lie one behind the other, or interleaved.
    """

    path: str
    parameter: str
    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class Inner:
    """A projection inside a module that goes on from there: a router, whose output is its choice.

    path: path of the module that holds the matrix and multiplies by it in its forward.
    """

    path: str


Place = str | tuple[str, ...] | Sub | Fused | Experts | Inner
"""Where a part is: a path, several paths of which the first that exists counts, or one of the
classes above. Paths are dotted module names."""


@dataclass(frozen=True)
class Layout:
    """Where the parts of one stack of blocks are.

    stack:  the stack's name in sites: "encoder", "decoder", "vision" or "audio".
    path:   path from the backbone to the stack, the module whose forward takes ids and masks.
    layers: path from the stack to its list of blocks; of a stack made of stages, those of all.
    embed:  path from the stack to its input embeddings; None where it reads no tokens.
    reads:  what goes in where that is no text: "images", "audio", or "states" of another part.
    block:  role -> place, with paths from a block.
    attention, cross_attention: paths from a block to the modules that compute attention.
    norms:  role -> path from the stack, for norms outside the blocks.
    closing_norm: path from a block to its last norm, whose output is the block's output; only in
            post-norm families.
    head_width: the attribute of an attention module that holds the width K of a head.
    causal: a position sees only the positions before it.
    keeps_first: the first position stays the first one, because heads read it (`[CLS]`); prompts
            are inserted after it.
    streams: the blocks hand on several streams of hidden states, `[S, B, T, D]`, so that their
            outputs are no place (Gemma 3n).
    beside_ids: (stack, ids `[B, T]`) -> what else the stack looks up by ids, as its own arguments;
            None where its embeddings are all. An id that no table has is a position without one.
    by_layer: the layouts of the single blocks, where the stack has blocks of several kinds; only
            what they say of a block counts.
    """

    stack: str
    path: str
    layers: str | tuple[str, ...]
    embed: str | None
    block: Mapping[str, Place]
    reads: str = "text"
    attention: str | None = None
    cross_attention: str | None = None
    norms: Mapping[str, str] = field(default_factory=dict)
    closing_norm: str | None = None
    head_width: str = "head_dim"
    causal: bool = True
    keeps_first: bool = False
    streams: bool = False
    beside_ids: Callable[[Any, Tensor], dict[str, Tensor]] | None = None
    by_layer: tuple[Layout, ...] = ()

    def of_block(self, number: int) -> Layout:
        """The layout of one block."""
        return self.by_layer[number] if self.by_layer else self


def from_zero(config: PreTrainedConfig) -> int:
    """The position id of the first token is 0."""
    return 0


@dataclass(frozen=True)
class Family:
    """Architectures that are described alike.

    model_types: their `config.model_type`.
    layouts: one per stack; of an encoder–decoder the encoder's first.
    logits: (model, hidden states `[..., D]`) -> logits `[..., V]`, as the model computes them.
    linear_head: logits are one matrix product, followed at most by elementwise functions, so that
        a loss may compute them a few positions at a time.
    position_start: config -> the position id of a text's first token.
    position_table: positions are looked up in a table, so texts cannot be longer than the table.
    shares_prefix: what stands before a text acts on it through attention and positions alone, and
        the stack accepts `position_ids`. A prefix that all rows share can then run once per pass
        instead of once per row (`runtime.shared_prefix`).
    """

    model_types: tuple[str, ...]
    layouts: tuple[Layout, ...]
    logits: Callable[[PreTrainedModel, Tensor], Tensor] = plain_logits
    linear_head: bool = True
    position_start: Callable[[PreTrainedConfig], int] = from_zero
    position_table: bool = False
    shares_prefix: bool = False
