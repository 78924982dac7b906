"""Where things are: Role names, Site (one named place in a base), Where (a choice of places).

A site's name does not depend on the task head: `decoder.3.attn.q` is the same place in the bare
backbone, in the causal language model and in a classifier. Its role is the last part of the name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from inlay.core.arguments import check_arguments
from inlay.core.quantised import dequantised, quantisation
from inlay.errors import SiteError, SpecError, nearest

ROLES: dict[str, str] = {
    "attn": "self-attention sub-layer: x enters it, y is what is added to the residual stream",
    "attn.q": "query projection",
    "attn.k": "key projection",
    "attn.v": "value projection",
    "attn.o": "output projection of self-attention",
    "attn.qkv": "queries, keys and values in one matrix, where how it holds them is not known",
    "attn.q_a": "down projection to the latent queries of latent attention",
    "attn.q_b": "up projection from the latent queries",
    "attn.kv_a": "down projection to the latent keys and values of latent attention",
    "attn.kv_b": "up projection from the latent keys and values",
    "attn.kv": "the keys and values that self-attention sees (extra keys and values go here)",
    "cross": "cross-attention sub-layer",
    "cross.q": "query projection of cross-attention",
    "cross.k": "key projection of cross-attention",
    "cross.v": "value projection of cross-attention",
    "cross.o": "output projection of cross-attention",
    "cross.kv": "the keys and values that cross-attention sees (extra keys and values go here)",
    "mixer": "linear-attention or state-space sub-layer: x enters it, y is what it adds",
    "mixer.in": "input projection of a mixer: all that it mixes, and its gate",
    "mixer.qkvz": "queries, keys, values and gate of linear attention in one matrix",
    "mixer.qkv": "queries, keys and values of linear attention in one matrix",
    "mixer.z": "gate of linear attention",
    "mixer.ba": "writing strength and decay of linear attention in one matrix",
    "mixer.b": "writing strength of linear attention",
    "mixer.a": "decay of linear attention",
    "mixer.x": "projection to the step size, B and C of a state-space mixer",
    "mixer.out": "output projection of a mixer",
    "mlp": "feed-forward sub-layer: x enters it, y is what is added to the residual stream",
    "mlp.up": "up projection; of a mixture of experts also every expert's",
    "mlp.gate": "gate projection of a gated feed-forward layer; also every expert's",
    "mlp.down": "down projection; of a mixture of experts also every expert's",
    "mlp.router": "router of a mixture of experts: the scores by which it chooses them",
    "mlp.experts.up": "up projections of the experts that a router chooses from",
    "mlp.experts.gate": "gate projections of these experts",
    "mlp.experts.down": "down projections of these experts",
    "mlp.shared.up": "up projection of the expert that reads every token",
    "mlp.shared.gate": "gate projection of that expert",
    "mlp.shared.down": "down projection of that expert",
    "norm.attn": "normalisation of the self-attention sub-layer",
    "norm.cross": "normalisation of the cross-attention sub-layer",
    "norm.mixer": "normalisation of the mixer sub-layer",
    "norm.mlp": "normalisation of the feed-forward sub-layer",
    "norm.embed": "normalisation of the embeddings",
    "norm.final": "normalisation after the last block",
    "block": "a whole block: y is the hidden state that the next block reads",
    "embed": "input embeddings (of the encoder, in an encoder–decoder); prompts go here",
    "embed.target": "input embeddings of the decoder in an encoder–decoder",
    "final": "the last hidden state (of the encoder, in an encoder–decoder), which heads read",
    "final.target": "the last hidden state of the decoder in an encoder–decoder",
    "head": "the language-model head",
    "base_head": "a layer of the base's own task head: its classifier, or what stands before that",
}
"""Every role there is, with what it means."""

AFTER_BLOCKS = frozenset({"norm.final", "final", "final.target", "head", "base_head"})
"""The roles of places after the last block."""

BLOCK_ROLES = (
    "attn.q?",
    "attn.k?",
    "attn.v?",
    "attn.o?",
    "attn.qkv?",
    "attn.q_a?",
    "attn.q_b?",
    "attn.kv_a?",
    "attn.kv_b?",
    "mixer.in?",
    "mixer.qkvz?",
    "mixer.qkv?",
    "mixer.z?",
    "mixer.ba?",
    "mixer.b?",
    "mixer.a?",
    "mixer.x?",
    "mixer.out?",
    "cross.q?",
    "cross.k?",
    "cross.v?",
    "cross.o?",
    "mlp.gate?",
    "mlp.up?",
    "mlp.down?",
    "mlp.router?",
    "norm.attn?",
    "norm.mixer?",
    "norm.cross?",
    "norm.mlp?",
    "norm.final?",
)
"""Every projection and norm of a block that has a place of its own, and the norm after the last."""

STACKS = ("encoder", "decoder", "vision", "audio")
"""What stacks of blocks are called: the first two read text, or the states of another part."""


def plain_role(role: str) -> str:
    """The role without what it is a part of: "mlp.down" of "mlp.experts.down"."""
    parts = role.split(".")
    return role if len(parts) < 3 else f"{parts[0]}.{parts[-1]}"


@dataclass(frozen=True)
class Where:
    """A choice of places: roles, and optionally layers and stacks.

    roles:  names from `ROLES`; one that ends in `?` is taken where it exists and left out
            where it does not. "mlp.down" are also the experts' ("mlp.experts.down").
    layers: layer numbers, counted from 0 in each stack; negative ones count from the end;
            None means all. Places outside the blocks (embed, head, …) have no layer and are
            selected whatever `layers` says.
    stacks: names from `STACKS`; a second stack of one kind is "vision2". None means all.
    """

    roles: tuple[str, ...]
    layers: tuple[int, ...] | None = None
    stacks: tuple[str, ...] | None = None

    def __new__(cls, *positional: Any, **named: Any) -> Self:
        """Refuse an unknown field with the name of the nearest one."""
        check_arguments(cls, positional, named, SpecError)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in ("roles", "layers", "stacks"):
            value = getattr(self, name)
            if isinstance(value, (str, int)):
                value = (value,)
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        if not self.roles:
            raise SpecError("a place needs at least one role, such as 'attn.q'")
        for role in self.roles:
            if role.removesuffix("?") not in ROLES:
                raise SpecError(f"no role is called {role!r}{nearest(role, ROLES)}")
        for stack in self.stacks or ():
            if str(stack).rstrip("0123456789") not in STACKS:
                known = ", ".join(STACKS)
                raise SpecError(f"no stack is called {stack!r}; known: {known}")

    @staticmethod
    def of(value: Where | str | Iterable[str]) -> Where:
        """A Where from what a user may write: a role, several roles, or a Where."""
        if isinstance(value, Where):
            return value
        return Where((value,) if isinstance(value, str) else tuple(value))

    def __repr__(self) -> str:
        arguments = [repr(self.roles)]
        arguments += [f"layers={self.layers!r}"] if self.layers is not None else []
        arguments += [f"stacks={self.stacks!r}"] if self.stacks is not None else []
        return f"Where({', '.join(arguments)})"


@dataclass(frozen=True)
class Part:
    """The columns of a fused projection's output that belong to one site.

    The output's last dimension is `count` runs of `stride` columns; the site owns `size` columns
    from `start` in every run. GPT-2's `c_attn` is one run of 3d; GPT-NeoX interleaves by head:
    one run a head.
    """

    start: int
    size: int
    stride: int
    count: int = 1

    @property
    def width(self) -> int:
        """How many columns the site owns in all."""
        return self.size * self.count

    def take(self, y: Tensor, dim: int = -1) -> Tensor:
        """The site's columns of y: `[..., count * stride] -> [..., count * size]`."""
        if self.count == 1:
            return y.narrow(dim, self.start, self.size)
        runs = y.unflatten(dim, (self.count, self.stride))
        dim = dim - 1 if dim < 0 else dim
        return runs.narrow(dim + 1, self.start, self.size).flatten(dim, dim + 1)

    def put(self, y: Tensor, new: Tensor) -> Tensor:
        """A copy of y whose columns of this site are `new`, the other columns as they were."""
        runs = y.unflatten(-1, (self.count, self.stride))
        new = new.unflatten(-1, (self.count, self.size))
        before = runs[..., : self.start]
        after = runs[..., self.start + self.size :]
        return torch.cat((before, new, after), -1).flatten(-2)

    def write(self, target: Tensor, new: Tensor) -> None:
        """Write `new` into the site's rows of `target` in place (dimension 0)."""
        runs = target.unflatten(0, (self.count, self.stride))
        runs[:, self.start : self.start + self.size] = new.unflatten(0, (self.count, self.size))


@dataclass(frozen=True)
class Expert:
    """Where one expert's matrix lies: it is a slice of a parameter that holds those of all.

    number:     the expert's, counted from 0.
    parameter:  name of the host's parameter `[E, d_out, d_in]`.
    bias:       name of the host's parameter `[E, d_out]`; None where there is none.
    transposed: whether the parameter is stored as `[E, d_in, d_out]`.
    """

    number: int
    parameter: str
    bias: str | None = None
    transposed: bool = False


@dataclass(frozen=True, eq=False)
class Site:
    """One named place in a base.

    host:   the module whose output is y (a projection, a norm, the last module of a sub-layer),
            or, for `*.kv`, the attention module itself.
    part:   the columns of a fused projection that belong to this site, else None.
    expert: where y is what one expert of a mixture computes inside the host, else None. x are then
            the tokens `[n, d_in]` that were sent to it.
    inside: y is what the host's own matrix computes in its forward, which goes on from there (a
            router, whose output are the experts chosen), not the host's output.
    caller: a module around the host that may compute without calling it, by a fused kernel: nothing
            can act at this site then.
    enter:  where x is not the host's own input (a whole sub-layer), the module whose input is x:
            x is then the residual stream that the sub-layer reads.
    norm:   on `block` of a post-norm family, the norm that makes y of x, the sum before it.
    d_in, d_out: widths of x and y; of a `*.kv` site, of the hidden states and of the keys.
    heads, head_dim, value_dim: of a `*.kv` site, its key-value heads, the width of their keys and
            that of their values; 0 elsewhere.
    layer:  number of the block in its stack, None outside the blocks.
    """

    name: str
    role: str
    host: nn.Module
    d_in: int
    d_out: int
    stack: str = "decoder"
    layer: int | None = None
    part: Part | None = None
    heads: int = 0
    head_dim: int = 0
    value_dim: int = 0
    enter: nn.Module | None = None
    norm: nn.Module | None = None
    expert: Expert | None = None
    inside: bool = False
    caller: nn.Module | None = None

    def __repr__(self) -> str:
        return f"<{self.name}: {type(self.host).__name__} {self.d_in}→{self.d_out}>"

    @property
    def is_projection(self) -> bool:
        """Whether x goes through a matrix here, y = W x + b."""
        if self.expert is not None:
            return True
        weight = getattr(self.host, "weight", None)
        whole = (
            self.enter is not None or self.heads or self.role in ("block", "final", "final.target")
        )
        embeds = self.role in ("embed", "embed.target")
        return isinstance(weight, Tensor) and weight.dim() == 2 and not whole and not embeds

    @property
    def is_norm(self) -> bool:
        """Whether y is x normalised, times a gain."""
        return self.role.startswith("norm.")

    def normalised(self) -> Callable[[Tensor], Tensor]:
        """What the norm at this site does to x before gain and bias."""
        host: Any = self.host
        if isinstance(host, nn.LayerNorm):
            return partial(_centred, shape=list(host.normalized_shape), eps=host.eps)
        eps = getattr(host, "variance_epsilon", None)
        return partial(_scaled, eps=float(host.eps if eps is None else eps))

    @property
    def plain_role(self) -> str:
        """The role without what it is a part of: "mlp.down" also of an expert's."""
        return plain_role(self.role)

    @property
    def parameter(self) -> Tensor:
        """The host's parameter in which the matrix lies."""
        name = "weight" if self.expert is None else self.expert.parameter
        parameter = getattr(self.host, name)
        assert isinstance(parameter, Tensor)
        return parameter

    @property
    def bias_parameter(self) -> Tensor | None:
        """The host's parameter in which the bias lies, or None where the host has none."""
        name = "bias" if self.expert is None else self.expert.bias
        parameter = None if name is None else getattr(self.host, name, None)
        return parameter if isinstance(parameter, Tensor) else None

    @property
    def quantisation(self) -> str | None:
        """How the matrix is quantised, such as "nf4"; None where it is not."""
        return None if self.expert is not None else quantisation(self.host)

    @property
    def transposed(self) -> bool:
        """Whether the matrix is stored as `[d_in, d_out]`."""
        return stored_transposed(self.host) if self.expert is None else self.expert.transposed

    def stored(self) -> tuple[Tensor, Tensor | None]:
        """Matrix and bias as they are stored, those of the host's other sites included.

        Both share memory with the host's parameters, of an expert with its slices of them.
        """
        bias = self.bias_parameter
        return self._slice(self.parameter), None if bias is None else self._slice(bias)

    def weight(self) -> Tensor:
        """The matrix of a projection as `[d_out, d_in]`, whatever the host's layout.

        It shares memory with the host's, unless that is quantised: then it is new, in fp32.
        """
        if self.quantisation is None:
            return self.own_matrix(self.parameter)
        weight = dequantised(self.host)
        return weight if self.part is None else self.part.take(weight, 0)

    def bias(self) -> Tensor | None:
        """The bias `[d_out]` of this site, or None where the host has none."""
        bias = self.bias_parameter
        return None if bias is None else self.own_bias(bias)

    def own_matrix(self, whole: Tensor) -> Tensor:
        """This site's matrix `[d_out, d_in]` (a norm's gain `[D]`) of what is laid out as
        `parameter` is, such as its gradient.
        """
        matrix = self._slice(whole)
        if self.transposed:
            matrix = matrix.T
        return matrix if self.part is None else self.part.take(matrix, 0)

    def own_bias(self, whole: Tensor) -> Tensor:
        """This site's bias `[d_out]` of what is laid out as `bias_parameter` is."""
        bias = self._slice(whole)
        return bias if self.part is None else self.part.take(bias, 0)

    def _slice(self, whole: Tensor) -> Tensor:
        """The expert's own part, where several experts lie in one parameter."""
        return whole if self.expert is None else whole[self.expert.number]

    def device(self) -> torch.device:
        """The device of the module's parameters."""
        for tensor in (*self.host.parameters(), *self.host.buffers()):
            return tensor.device
        for module in (self.enter, self.norm):
            for tensor in module.parameters() if module is not None else ():
                return tensor.device
        return torch.device("cpu")


def _centred(x: Tensor, shape: list[int], eps: float) -> Tensor:
    return F.layer_norm(x, shape, eps=eps)


def _scaled(x: Tensor, eps: float) -> Tensor:
    return (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def stored_transposed(host: nn.Module) -> bool:
    """Whether the host keeps its matrix as `[d_in, d_out]` (transformers' Conv1D)."""
    return isinstance(host, Conv1D)


def select(sites: Iterable[Site], where: Where) -> list[Site]:
    """The sites that `where` names, in the order of the base.

    Raises SiteError where nothing, or a role given without `?`, is missing.
    """
    sites = list(sites)
    stacks = {site.stack for site in sites}
    depth = {name: _depth(sites, name) for name in stacks}
    for stack in where.stacks or ():
        if stack not in stacks:
            raise SiteError(f"this model has no {stack}; it has: {', '.join(sorted(stacks))}")
    for layer in where.layers or ():
        if not any(-n <= layer < n for n in depth.values()):
            sizes = ", ".join(f"{name} has {n}" for name, n in sorted(depth.items()))
            raise SiteError(f"there is no layer {layer}: the {sizes}, counted from 0")

    def in_scope(site: Site) -> bool:
        if where.stacks is not None and site.stack not in where.stacks:
            return False
        if where.layers is None or site.layer is None:
            return True
        return site.layer in where.layers or site.layer - depth[site.stack] in where.layers

    selected: list[Site] = []
    for role in where.roles:
        name = role.removesuffix("?")
        with_role = [site for site in sites if name in (site.role, site.plain_role)]
        if not with_role and not role.endswith("?"):
            known = sorted({site.role for site in sites})
            raise SiteError(f"this model has no {name!r}{_like(name, known)}")
        selected += [site for site in with_role if in_scope(site)]
    if not selected:
        raise SiteError(
            f"{where!r} chooses nothing in this model; inlay sites lists the places of a model"
        )
    order = {id(site): number for number, site in enumerate(sites)}
    return sorted({id(site): site for site in selected}.values(), key=lambda s: order[id(s)])


def _like(name: str, known: list[str]) -> str:
    return nearest(name, known) if known else "; its structure could not be read"


def _depth(sites: list[Site], stack: str) -> int:
    return 1 + max((s.layer for s in sites if s.stack == stack and s.layer is not None), default=-1)
