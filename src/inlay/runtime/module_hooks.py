"""Module hooks: pieces that see the input and output of a module and change them.

Classes, parameter names and `forward` stay as they are. A hook is a bound method, so that a deep
copy of the base gets hooks of its own; it is prepended, so that `output_hidden_states` sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from inlay.architectures.chart import Chart
from inlay.core.context import PassContext
from inlay.core.per_thread import PerThread
from inlay.core.piece import InputMap, OutputDelta, Piece, VirtualTokenDelta
from inlay.core.site import Site
from inlay.errors import PortError, RowsError
from inlay.runtime.experts import ExpertHooks, check_expert
from inlay.runtime.inside import Product
from inlay.runtime.port import Port, StackState, accepts
from inlay.runtime.routing import Groups, Names
from inlay.runtime.stack_inputs import first_input, first_output, replace_first_output
from inlay.runtime.virtual_tokens import VirtualTokenPort


@accepts(OutputDelta, InputMap, VirtualTokenDelta)
class ModuleHookPort(Port):
    """The hooks of all sites of one stack, made where the first piece needs them."""

    label = "module hooks"

    def __init__(self, state: StackState):
        super().__init__(state)
        self.sites: dict[str, SiteHooks | ExpertHooks] = {}

    @classmethod
    @override
    def check(cls, method: str, site: Site, piece: Piece, chart: Chart) -> None:
        if site.heads or site.role in ("final", "final.target"):
            raise PortError(
                f"{method} changes the output of a module, and {site.role!r} is not a module; use "
                "a role such as 'attn.q' or 'mlp'"
            )
        if isinstance(piece, InputMap) and site.part is not None:
            raise PortError(
                f"{method} changes what a matrix reads, and that at {site.name} belongs to other "
                "places too; use a place whose matrix is its own, such as 'mlp.down'"
            )
        if isinstance(piece, VirtualTokenDelta) and site.inside:
            raise PortError(f"{method} acts at positions of a text, and {site.name} reads tokens")
        if site.expert is not None:
            check_expert(method, site, piece)

    @override
    def add(self, name: str, site: Site, piece: Piece) -> None:
        if site.expert is not None:
            place = site.name.rsplit(".", 2)[0]  # decoder.3.mlp.experts
            experts = self.sites.setdefault(place, ExpertHooks(place, site.host, self.state))
            assert isinstance(experts, ExpertHooks)
            experts.add(name, site, piece)
            return
        if site.name not in self.sites:
            kind = InsideHooks if site.inside else SiteHooks
            self.sites[site.name] = kind(site, self.state)
        hooks = self.sites[site.name]
        assert isinstance(hooks, SiteHooks)
        hooks.add(name, piece)

    @override
    def remove(self, name: str) -> None:
        for site, hooks in list(self.sites.items()):
            hooks.remove(name)
            if hooks.empty:
                del self.sites[site]

    @override
    def row_sites(self) -> Iterable[str]:
        return self.sites


class _Entered(PerThread):
    """The input of a whole sub-layer, kept until its output arrives.

    called: whether the host has been called since its caller was.
    """

    __slots__ = ()
    x: Tensor | None = None
    called: bool = True


class SiteHooks:
    """All pieces of all inlays at one site, by the name of their inlay.

    output: those that add to the module's output. input: those that change its input. tokens:
    those that act at virtual tokens.
    """

    def __init__(self, site: Site, state: StackState):
        self.site = site
        self.state = state
        self.output: dict[str, list[OutputDelta]] = {}
        self.input: dict[str, list[InputMap]] = {}
        self.tokens: dict[str, list[VirtualTokenDelta]] = {}
        self._entered = _Entered()
        self._hooks: list[RemovableHandle] = []

    @property
    def empty(self) -> bool:
        """Whether no piece is left."""
        return not (self.output or self.input or self.tokens)

    def add(self, name: str, piece: Piece) -> None:
        """Let a piece of the inlay `name` in."""
        if isinstance(piece, InputMap):
            self.input.setdefault(name, []).append(piece)
        elif isinstance(piece, VirtualTokenDelta):
            self.tokens.setdefault(name, []).append(piece)
        else:
            assert isinstance(piece, OutputDelta)
            self.output.setdefault(name, []).append(piece)
        self._hook()

    def remove(self, name: str) -> None:
        """Take out an inlay's pieces."""
        for pieces in (self.output, self.input, self.tokens):
            pieces.pop(name, None)
        self._hook()

    def _hook(self) -> None:
        """Put on the hooks that the pieces need, and no others."""
        for handle in self._hooks:
            handle.remove()
        self._hooks = []
        module, enter = self.site.host, self.site.enter
        if self.input:
            hook = module.register_forward_pre_hook
            self._hooks.append(hook(self._before, prepend=True, with_kwargs=True))
        if self.output or self.tokens:
            after = module.register_forward_hook
            self._hooks.append(after(self._after, prepend=True, with_kwargs=True))
            if enter is not None:
                before = enter.register_forward_pre_hook
                self._hooks.append(before(self._enter, prepend=True, with_kwargs=True))
        if self.site.caller is not None and not self.empty:
            self._hooks.append(module.register_forward_hook(self._note_call))
            self._hooks.append(self.site.caller.register_forward_pre_hook(self._await_call))
            self._hooks.append(self.site.caller.register_forward_hook(self._check_call))

    def _await_call(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._entered.called = False

    def _note_call(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._entered.called = True

    def _check_call(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Raise PortError where a kernel read the host's matrix, and pieces had to act there."""
        if not self._entered.called and self.serves():
            raise PortError(
                f"{type(module).__name__} was computed by one kernel, in which nothing can act at "
                f"{self.site.name}; use another place, such as 'mixer.in' or 'mixer'"
            )

    def serves(self) -> bool:
        """Whether any piece here serves a row of the pass under way."""
        acting = {*self.input, *self.output, *self.tokens}
        return not self.state.routing.serving().isdisjoint(acting)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the input of a whole sub-layer until its output arrives."""
        self._entered.x = first_input(args, kwargs)

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = first_input(args, kwargs)
        groups = self._groups(x, self.input)
        if groups is None:
            return args, kwargs
        mapped = groups.apply(self._map_input, (x,), self._context(x))
        if args:
            return (mapped, *args[1:]), kwargs
        return (), {**kwargs, next(iter(kwargs)): mapped}

    def _groups(self, tensor: Tensor, among: Collection[str]) -> Groups | None:
        """How inlays are spread over the rows of what the module reads or computes."""
        if self.state.row_axis.under_way:
            self.state.row_axis.note(self.site.name, tensor)
            return None
        groups = self.state.routing.groups(tensor.shape[0], among)
        if groups is not None and groups.group is not None:
            self.state.row_axis.check(self.site.name)
        return groups

    def _context(self, x: Tensor) -> PassContext:
        """What pieces at this site may know of the pass."""
        context = self.state.context
        reads_encoder = self.site.role in ("cross.k", "cross.v")
        return (context.of_source() if reads_encoder else context).of(x)

    def _map_input(self, names: Names, x: Tensor, context: PassContext) -> Tensor:
        for name in names:
            for piece in self.input[name]:
                x = piece(x, context)
        return x

    def _after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        whole = first_output(output)
        x = first_input(args, kwargs) if self.site.enter is None else self._entered.x
        self._entered.x = None
        if not isinstance(whole, Tensor):
            if self.serves():
                raise self._other_layout(f"computes a {type(whole).__name__}, and no vectors")
            return output
        self._check_rows(whole)
        groups = self._groups(whole, self.output)
        at_tokens = self._at_tokens()
        if groups is None and not at_tokens:
            return output
        part = self.site.part
        y = whole if part is None else part.take(whole)
        if groups is not None:
            x = self._checked(x, y)
            y = groups.apply(self._add_deltas, (x, y), self._context(y))
        for piece, number in at_tokens:
            if number.shape != y.shape[:2]:
                raise self._other_layout(
                    f"computes {list(y.shape)} for {list(number.shape)} tokens"
                )
            y = y + piece(y, number)
        y = y if part is None else part.put(whole, y)
        return replace_first_output(output, y)

    def _add_deltas(self, names: Names, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        for name in names:
            for piece in self.output[name]:
                delta = piece(x, y, context)
                if not _fits(delta, y):
                    raise self._other_layout(f"computes {list(y.shape)} from {list(x.shape)}")
                y = y + delta
        return y

    def _at_tokens(self) -> list[tuple[VirtualTokenDelta, Tensor]]:
        """The pieces whose virtual tokens stand in the pass under way, and where these are."""
        if not self.tokens:
            return []
        port = self.state.port(VirtualTokenPort)
        pieces = [piece for pieces in self.tokens.values() for piece in pieces]
        numbers = [(piece, port.numbers(piece.tokens)) for piece in pieces]
        return [(piece, number) for piece, number in numbers if number is not None]

    def _checked(self, x: Tensor | None, y: Tensor) -> Tensor:
        """x, laid out as y is: some sub-layers flatten the positions of all rows, `[B · T, D]`.

        Raises PortError where x and y are not the vectors that the place is known for.
        """
        if x is None:
            raise self._other_layout("ends in a pass that did not enter it")
        width = self.site.d_out
        if y.shape[-1] != width:
            raise self._other_layout(f"computes {list(y.shape)}, and not vectors of {width}")
        flat = x.dim() > 2 == y.dim() and x.shape[:-1].numel() == len(y)
        return x.flatten(0, -2) if flat else x

    def _other_layout(self, what: str) -> PortError:
        return PortError(
            f"{self.site.name} of {type(self.state.stack.module).__name__} {what}; use other "
            "places by at=, such as its projections"
        )

    def _check_rows(self, y: Tensor) -> None:
        if self.site.role == "head" and y.dim() < 3 and len(self.state.routing.bound) > 1:
            raise RowsError(
                "a head that reads selected positions cannot tell their rows apart; "
                "give every row the same inlay, or pass the head whole rows"
            )


def _fits(delta: Tensor, y: Tensor) -> bool:
    """Whether the sum of both has the shape of y."""
    pairs = zip(reversed(delta.shape), reversed(y.shape), strict=False)
    return delta.dim() <= y.dim() and all(size in (1, width) for size, width in pairs)


class _Opened(PerThread):
    """The products that are being waited for: of the module, and of those that it runs inside."""

    __slots__ = ()

    products: tuple[Product, ...] = ()


class InsideHooks(SiteHooks):
    """All pieces of all inlays at a matrix inside a module, which goes on from its product."""

    def __init__(self, site: Site, state: StackState):
        super().__init__(site, state)
        self._opened = _Opened()

    @override
    def _hook(self) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks = []
        if not self.empty:
            before = self.site.host.register_forward_pre_hook
            after = self.site.host.register_forward_hook
            self._hooks = [
                before(self._open, prepend=True),
                after(self._close, prepend=True, always_call=True),
            ]

    def _open(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        product = Product(self.site.parameter.shape, self._product)
        self._opened.products = (*self._opened.products, product)
        product.__enter__()

    def _close(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        *before, product = self._opened.products
        self._opened.products = tuple(before)
        product.__exit__(None, None, None)
        if not product.changed and output is not None and self.serves():
            raise PortError(
                f"{type(module).__name__} did not multiply by its matrix as torch does, so nothing "
                f"can act at {self.site.name}; use another place, such as 'mlp'"
            )

    def _product(self, x: Tensor, multiply: Callable[[Tensor], Tensor]) -> Tensor:
        """What the module gets for its product with x, `[N, d_in] -> [N, d_out]`."""
        groups = self._groups(x, self.input)
        if groups is not None:
            x = groups.apply(self._map_input, (x,), self._context(x))
        y = multiply(x)
        groups = self._groups(y, self.output)
        return y if groups is None else groups.apply(self._add_deltas, (x, y), self._context(y))
