"""Pieces at the experts of a mixture, whose matrices are slices of fused parameters.

A mixture sends each token to a few experts and computes all of them in one module, which reads
tokens without rows, `[N, D]`, with the numbers and weights of their experts, `[N, k]`:

    y_n = Σ_k weight_nk · down_e( act( gate_e(x_n) ) · up_e(x_n) ),    e = index_nk

There is no module for one expert's projection, so nothing to hook. Where pieces serve any row of
the pass, the module gets a single token to compute, and what it should have computed is computed
here from its own parameters, with the pieces between them: pairs of token and expert are put in
order by expert, and within an expert by the inlays of their rows, each run with its own pieces.
Where no piece serves a row, the module runs as ever.

How many tokens an expert gets is a number on a device, for which each mixture waits, once a pass. A
compiled pass cannot: there every piece runs on the tokens of all experts, and what it computes for
those of others is left out. Pieces are small beside the experts, but a graph with hundreds of
experts is a large one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from inlay.core.context import PassContext
from inlay.core.per_thread import PerThread
from inlay.core.piece import InputMap, OutputDelta, Piece, VirtualTokenDelta
from inlay.core.site import Site
from inlay.errors import PortError
from inlay.runtime.grouped import grouped_product
from inlay.runtime.port import StackState
from inlay.runtime.routing import Groups, Names


def check_expert(method: str, site: Site, piece: Piece) -> None:
    """Raise PortError where a piece cannot act inside an expert."""
    assert site.expert is not None
    parts = [part for part in piece.modules() if isinstance(part, Piece)]
    if isinstance(piece, VirtualTokenDelta) or any(part.relates_positions for part in parts):
        raise PortError(
            f"{method} acts at positions of a text, and {site.name} reads single tokens without "
            "their texts; use a role such as 'mlp' or 'attn.o'"
        )
    if vars(site.host).get("_is_expert_parallel"):
        raise PortError(
            f"{method} acts inside experts, and those of this model are spread over several "
            "processes; use a role such as 'mlp' or 'attn.o'"
        )
    if site.parameter.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise PortError(
            f"{method} acts inside experts, and those of this model are quantised; use a role such "
            "as 'mlp' or 'attn.o'"
        )


@dataclass
class MatrixPieces:
    """The pieces at one site of one expert, by inlay: those that change x, those that add to y."""

    site: Site
    input: dict[str, list[InputMap]] = field(default_factory=dict)
    output: dict[str, list[OutputDelta]] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """What the module was to compute: tokens `[N, D]`, their experts and weights `[N, k]`."""

    groups: Groups
    tokens: Tensor
    experts: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Pairs:
    """Pairs of token and expert, sorted by expert.

    experts `[N · k]`: of each pair. group `[N · k]`: of its token's row; None where there is one.
    names: the inlays of every group, in order.
    """

    experts: Tensor
    group: Tensor | None
    names: tuple[Names, ...]

    def served(self, expert: int) -> Iterator[tuple[str, Tensor]]:
        """Every inlay that may act at an expert, and at which pairs it does, `[N · k, 1]`."""
        for number, names in enumerate(self.names):
            here = self.experts == expert
            if self.group is not None:
                here = here & (self.group == number)
            for name in names:
                yield name, here[:, None]


class _Call(PerThread):
    """What was taken over from the module and is not computed yet."""

    __slots__ = ()

    call: Call | None = None


class ExpertHooks:
    """All pieces of all inlays in the experts of one mixture. name: of their places together."""

    def __init__(self, name: str, host: nn.Module, state: StackState):
        self.name = name
        self.host = host
        self.state = state
        self.matrices: dict[tuple[int, str], dict[str, MatrixPieces]] = {}
        self.names: dict[str, int] = {}
        self._call = _Call()
        self._hooks: list[RemovableHandle] = []

    @property
    def empty(self) -> bool:
        """Whether no piece is left."""
        return not self.names

    def add(self, name: str, site: Site, piece: Piece) -> None:
        """Let a piece of the inlay `name` in."""
        expert = site.expert
        assert expert is not None
        sites = self.matrices.setdefault((expert.number, expert.parameter), {})
        pieces = sites.setdefault(site.name, MatrixPieces(site))
        if isinstance(piece, InputMap):
            pieces.input.setdefault(name, []).append(piece)
        else:
            assert isinstance(piece, OutputDelta)
            pieces.output.setdefault(name, []).append(piece)
        self.names[name] = self.names.get(name, 0) + 1
        if not self._hooks:
            before, after = self.host.register_forward_pre_hook, self.host.register_forward_hook
            self._hooks = [
                before(self._before, prepend=True, with_kwargs=True),
                after(self._after, prepend=True),
            ]

    def remove(self, name: str) -> None:
        """Take out an inlay's pieces."""
        self.names.pop(name, None)
        for sites in self.matrices.values():
            for pieces in sites.values():
                pieces.input.pop(name, None)
                pieces.output.pop(name, None)
        if self.empty:
            for handle in self._hooks:
                handle.remove()
            self._hooks = []

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Take over what the module is to compute, where pieces serve a row; leave it one token."""
        tokens, experts, weights = (*args, *kwargs.values())[:3]
        axis = self.state.row_axis
        if axis.under_way:
            axis.note(self.name, tokens)
            return None
        groups = self.state.routing.groups(len(tokens), self.names)
        if groups is None:
            return None
        if groups.group is not None:
            axis.check(self.name)
        self._call.call = Call(groups, tokens, experts, weights)
        return tuple(value[:1].detach() for value in (tokens, experts, weights)), {}

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call, self._call.call = self._call.call, None
        return output if call is None else self._compute(call)

    def _compute(self, call: Call) -> Tensor:
        """What the module computes with the pieces: `[N, D]`."""
        if torch.compiler.is_compiling():
            return self._compute_at_once(call)
        top = call.experts.shape[1]
        numbers, groups = call.experts.reshape(-1), len(call.groups.names)
        if call.groups.group is not None:
            of_token = call.groups.index(numbers.device)
            numbers = numbers * groups + of_token.repeat_interleave(top)
        order = torch.argsort(numbers, stable=True)
        x = call.tokens[order // top]
        sizes = torch.bincount(numbers).tolist()
        learning = self._learning()
        sizes += [0] * (learning * groups - len(sizes))
        context = replace(self.state.context, mask=None, source_mask=None, cache=None)
        outputs, start = [], 0
        for number, size in enumerate(sizes):
            expert, group = divmod(number, groups)
            if size or learning:
                run = replace(context, batch=size, row_numbers=None)
                names = call.groups.names[group]
                outputs.append(self._expert(expert, names, x[start : start + size], run))
            start += size
        return _summed(torch.cat(outputs), call, order)

    def _compute_at_once(self, call: Call) -> Tensor:
        """The same without knowing how many tokens each expert gets."""
        module: Any = self.host
        top = call.experts.shape[1]
        up = "gate_up_proj" if module.has_gate else "up_proj"
        numbers = call.experts.reshape(-1)
        order = torch.argsort(numbers, stable=True)
        groups = call.groups
        group = None if groups.group is None else groups.index(numbers.device)[order // top]
        pairs = Pairs(numbers[order], group, groups.names)
        context = replace(
            self.state.context,
            mask=None, source_mask=None, cache=None, batch=len(numbers), row_numbers=None,
        )  # fmt: skip
        inner = self._project_at_once(up, pairs, call.tokens[order // top], context)
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        y = self._project_at_once("down_proj", pairs, inner, context)
        y = module.post_expert_norm(y) if module.has_post_expert_norm else y
        return _summed(y, call, order)

    def _project_at_once(
        self, parameter: str, pairs: Pairs, x: Tensor, context: PassContext
    ) -> Tensor:
        """One matrix of all experts with the pieces: x `[N · k, d_in]`, sorted by expert."""
        module: Any = self.host
        sites = [
            (number, pieces)
            for (number, matrix), by_name in self.matrices.items()
            if matrix == parameter
            for pieces in by_name.values()
        ]
        for number, pieces in sites:
            for name, here in pairs.served(number):
                for input_map in pieces.input.get(name, ()):
                    x = torch.where(here, input_map(x, context), x)
        weight = getattr(module, parameter)
        ends = (pairs.experts <= torch.arange(len(weight), device=x.device)[:, None]).sum(1)
        matrices = weight if module.is_transposed else weight.transpose(1, 2)
        y = grouped_product(x.to(weight.dtype), matrices, ends)
        if module.has_bias:
            y = y + getattr(module, f"{parameter}_bias")[pairs.experts]
        for number, pieces in sites:
            part = pieces.site.part
            own = y if part is None else part.take(y)
            for name, here in pairs.served(number):
                for piece in pieces.output.get(name, ()):
                    own = own + torch.where(here, piece(x, own, context), 0)
            y = own if part is None else part.put(y, own)
        return y

    def _learning(self) -> int:
        """How many experts there are, where each must get a gradient; else 0.

        An expert without tokens gets zeros then: which parameters have gradients does not depend
        on the batch, and processes that train together wait for the same ones from each other.
        """
        if not torch.is_grad_enabled():
            return 0
        return 1 + max(number for number, _ in self.matrices)

    def _expert(self, number: int, names: Names, x: Tensor, context: PassContext) -> Tensor:
        """One expert: x `[n, D]` -> `[n, D]`, before its weights."""
        module: Any = self.host
        up = "gate_up_proj" if module.has_gate else "up_proj"
        inner = self._project(number, up, names, x, context)
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        y = self._project(number, "down_proj", names, inner, context)
        return module.post_expert_norm(y) if module.has_post_expert_norm else y

    def _project(
        self, number: int, parameter: str, names: Names, x: Tensor, context: PassContext
    ) -> Tensor:
        """One matrix of one expert with the pieces of these inlays."""
        module: Any = self.host
        sites = self.matrices.get((number, parameter), {}).values()
        for pieces in sites:
            x = _mapped(pieces.input, names, x, context)
        weight = getattr(module, parameter)[number]
        bias = getattr(module, f"{parameter}_bias")[number] if module.has_bias else None
        y = F.linear(x.to(weight.dtype), weight.T if module.is_transposed else weight, bias)
        for pieces in sites:
            part = pieces.site.part
            own = y if part is None else part.take(y)
            changed = own
            for name in names:
                for piece in pieces.output.get(name, ()):
                    changed = changed + piece(x, changed, context)
            if changed is not own:
                y = changed if part is None else part.put(y, changed)
        return y


def _summed(y: Tensor, call: Call, order: Tensor) -> Tensor:
    """What the experts computed, sorted `[N · k, D]`, as the sum of each token's: `[N, D]`."""
    y = y * call.weights.reshape(-1)[order, None]
    count, top = call.experts.shape
    back = torch.argsort(order)
    return y[back].unflatten(0, (count, top)).sum(1).to(call.tokens.dtype)


def _mapped(
    pieces: Mapping[str, list[InputMap]], names: Names, x: Tensor, context: PassContext
) -> Tensor:
    for name in names:
        for piece in pieces.get(name, ()):
            x = piece(x, context)
    return x
