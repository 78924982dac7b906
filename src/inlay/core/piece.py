"""What a method builds: pieces. A piece knows its parameters and its arithmetic, nothing else.

Nine kinds, by where their output goes:

    OutputDelta        x and y of a module -> what is added to y
    InputMap           x of a module -> the x that the module reads instead
    ExtraKV            additional keys and values for one attention
    PromptVectors      additional positions before the text, in the space of the embeddings
    VirtualTokens      vectors for virtual tokens, which stand anywhere in the text
    VirtualTokenDelta  y of a module -> what is added to y where virtual tokens stand
    HeadPiece          a classifier over the last hidden state; tasks call it, nothing is hooked
    SideNetwork        the outputs of a stack's blocks -> the last hidden state
    SideEncoder        the outputs of an encoder's blocks -> what the decoder's side network reads

Letters in shapes: B batch, T positions, P extra positions, D width, H heads, K head width,
R rank, M bottleneck, C classes, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.core.context import PassContext
from inlay.core.per_thread import PerThread
from inlay.core.site import Site

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Reference(Generic[ModuleT]):
    """A module that is used here and owned elsewhere.

    `nn.Module` takes every module that is assigned to an attribute for a part of itself. A piece
    that reads a shared module, or a module of the base, keeps a reference instead, so that its
    `parameters()` are its own.
    """

    def __init__(self, module: ModuleT):
        self.module = module


class Piece(nn.Module):
    """The root of the kinds. Parameters are fp32; the arithmetic runs in the dtype of its input.

    A parameter built with `requires_grad=False` stays frozen; a buffer is not a parameter.

    A piece may hold other pieces; what these export, load and resize is then theirs to say.

    draws: whether it draws random numbers in a pass, from `context.generator(...)`.
    relates_positions: whether what it does at one position depends on other positions of x. It is
        then given the padding mask, and the beginnings that rows have in common are not run
        separately (see `runtime.shared_prefix`). In a decoder that generates, x is one position:
        what a piece needs of earlier ones it keeps with `context.append_to_cache`.
    brings_weights: whether a file holds all weights of the module at its site, so that it does not
        matter which ones the base has there.
    """

    draws: ClassVar[bool] = False
    relates_positions: ClassVar[bool] = False
    brings_weights: ClassVar[bool] = False

    def export(self) -> dict[str, Tensor]:
        """The tensors that a file holds, by name: parameters and persistent buffers, any dtype.

        A piece that trains through something that is dropped later (an MLP, an LSTM, copies)
        returns what is left after dropping it; its method's `exported()` is the spec that reads
        it back.
        """
        held = self._held_pieces()
        tensors = {
            name: tensor.detach()
            for name, tensor in self.state_dict().items()
            if not name.startswith(tuple(held))
        }
        for prefix, piece in held.items():
            tensors |= {prefix + name: tensor for name, tensor in piece.export().items()}
        return tensors

    def resize(self, shapes: Mapping[str, torch.Size]) -> None:
        """Get ready for tensors of these shapes, before `load`.

        Only for a piece whose sizes its method's fields do not fix, such as a pruned rank; the
        default keeps its shapes, and a file with other ones is refused.
        """
        for prefix, piece in self._held_pieces().items():
            piece.resize(_under(prefix, shapes))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take tensors that `export` of an equal piece returned; names and shapes are checked."""
        state, held = self.state_dict(), self._held_pieces()
        for name, tensor in tensors.items():
            if not name.startswith(tuple(held)):
                state[name].copy_(tensor)
        for prefix, piece in held.items():
            piece.load(_under(prefix, tensors))

    def _held_pieces(self) -> dict[str, Piece]:
        """The pieces directly inside this one, by how the names of their tensors begin."""
        held: dict[str, Piece] = {}
        for name, module in self.named_modules(remove_duplicate=False):
            prefix = f"{name}."
            if name and isinstance(module, Piece) and not prefix.startswith(tuple(held)):
                held[prefix] = module
        return held


ValueT = TypeVar("ValueT")


def _under(prefix: str, entries: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """The entries whose names begin with `prefix`, by the rest of their names."""
    return {n.removeprefix(prefix): e for n, e in entries.items() if n.startswith(prefix)}


class Resizable(nn.Module):
    """A shared module, or a part of one, whose sizes training decides, as `Piece.resize` says."""

    @abstractmethod
    def resize(self, shapes: Mapping[str, torch.Size]) -> None:
        """Get ready for tensors of these shapes, which a checkpoint or a file then fills in."""


def resize_parts(module: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    """Resize the resizable parts of a shared module, or the module itself.

    shapes: of all its tensors, by name.
    """
    resized: list[str] = []
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(part, Resizable) and not any(prefix.startswith(outer) for outer in resized):
            part.resize(_under(prefix, shapes))
            resized.append(prefix)


class OutputDelta(Piece):
    """Adds to the output of a module: y' = y + delta(x, y).

    reads_output: whether delta is a function of y, as of adapters after a sub-layer, and not of x.
    """

    reads_output: ClassVar[bool] = False

    @override
    def forward(
        self, x: Tensor, y: Tensor, context: PassContext, factor: Tensor | None = None
    ) -> Tensor:
        if factor is None:
            return self.delta(x, y, context)
        return self.scaled(factor, x, y, context)

    @abstractmethod
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        """x `[..., d_in]`, y `[..., d_out]` -> what is added to y, `[..., d_out]`."""

    def scaled(self, factor: Tensor, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        """What is added to y where a gate stands in front: nothing at 0, `delta` at 1.

        A piece whose trained part is followed by a norm scales it before the norm. factor: of any
        shape that y `[..., d_out]` can be multiplied with.
        """
        return factor * self.delta(x, y, context)


class InputMap(Piece):
    """Changes the input of a module: x' = f(x)."""

    @abstractmethod
    @override
    def forward(self, x: Tensor, context: PassContext) -> Tensor:
        """x `[..., d_in]` -> `[..., d_in]`."""


class Foldable:
    """A mixin for pieces at a module that can be folded into its weights: mergeable means this."""

    @abstractmethod
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weights of a module that computes alone what module and piece compute together.

        w `[d_out, d_in]` (a norm's gain `[d]`) and b `[d_out]` in fp32; b is None where the module
        has no bias, and stays None. Raises NoBiasError or another MergeError where no such
        weights exist.
        """


class HoldsBottleneck:
    """A mixin for adapters whose trained part is one module, `[..., D] -> [..., D]`.

    A fusion puts several in the place of one.
    """

    inner: nn.Module


class TwoProjections:
    """A mixin for pieces that narrow their input and widen it again.

    A mixture draws the two projections independently of each other.

    down: the names of the parameters of the first projection; all others belong to the second.
    """

    down: ClassVar[frozenset[str]]


class ExtraKV(Piece):
    """Additional keys and values, seen by every query in the same softmax as the text's own.

    length: P, how many there are. shift: by how many positions the text moves back, as if it stood
    after tokens.
    """

    length: int
    shift: int = 0

    @abstractmethod
    @override
    def forward(self, x: Tensor, context: PassContext) -> tuple[Tensor, Tensor]:
        """x `[B, T, D]`, what the attention reads -> k, v, each `[H, P, K]`.

        H are the key-value heads. Keys and values that depend on x or on the rows are
        `[B, H, P, K]`.
        """


class PromptVectors(Piece):
    """Additional positions before the text (after the first token where a head reads that)."""

    length: int

    @abstractmethod
    @override
    def forward(self) -> Tensor:
        """-> `[P, D]`, in the space of the input embeddings."""


class VirtualTokens(Piece):
    """Vectors for virtual tokens, which a text names by ids from V on."""

    length: int

    @property
    def before(self) -> int:
        """How many stand before the text where no template places them: half of them."""
        return self.length // 2

    @abstractmethod
    @override
    def forward(self) -> Tensor:
        """-> `[N, D]`, in the space of the input embeddings."""


class VirtualTokenDelta(Piece):
    """Adds to the output of a module at the positions of one piece's virtual tokens.

    The method says which piece that is in `finish`, when all pieces exist.
    """

    def follow(self, tokens: VirtualTokens) -> None:
        """From now on it acts at the virtual tokens of this piece."""
        self._tokens = Reference(tokens)

    @property
    def tokens(self) -> VirtualTokens:
        """The piece at whose virtual tokens it acts."""
        return self._tokens.module

    @abstractmethod
    @override
    def forward(self, y: Tensor, number: Tensor) -> Tensor:
        """y `[B, T, d_out]`, number `[B, T]` (n = the n-th virtual token, 0 = none) -> like y."""


class HeadPiece(Piece):
    """A trained classifier over the last hidden state.

    labels: its classes, in order. each: whether it classifies every token by itself. reads:
    "states", or "features": what the output embeddings are given, at one place a row.
    """

    labels: tuple[str, ...]
    each: bool = False
    reads: ClassVar[Literal["states", "features"]] = "states"

    @abstractmethod
    @override
    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden `[B, T, D]`, mask `[B, T]` (1 = text) -> logits `[B, C]`, or `[B, T, C]`."""


class SideNetwork(Piece):
    """A network beside a stack, which replaces its last hidden state.

    It reads what the blocks compute, detached, so that no gradient enters the base. In generation
    it keeps what it needs of earlier positions with `context.append_to_cache`. Whatever is trained
    together with it below the last state gets no gradient.

    taps: projections inside the blocks whose x and y it reads as well.
    """

    relates_positions: ClassVar[bool] = True
    taps: tuple[Site, ...] = ()

    @abstractmethod
    @override
    def forward(self, states: tuple[Tensor, ...], last: Tensor, context: PassContext) -> Tensor:
        """The embeddings and every block's output, L + 1 times `[B, T, D]` -> `[B, T, D]`.

        After these come x `[B, T, d_in]` and y `[B, T, d_out]` of every tap, in their order.
        last: the last state that it replaces, which a norm may have changed after the last block.
        """


class SideEncoder(Piece):
    """A network beside an encoder, read by the side network of the decoder of the same inlay.

    The base's decoder reads the states of the base's encoder, as ever. Those of the side network
    come to the decoder's as `context.side_states`, with as many columns as the widest `SideEncoder`
    of the batch has: the first `width` are its own.
    """

    relates_positions: ClassVar[bool] = True
    width: int

    @abstractmethod
    @override
    def forward(self, states: tuple[Tensor, ...], context: PassContext) -> Tensor:
        """The embeddings and every block's output, L + 1 times `[B, T, D]` -> `[B, T, W]`."""


class _Once(PerThread):
    """The value of the pass under way, and the versions of the parameters that it is made of."""

    __slots__ = ()
    value: Tensor | None = None
    versions: tuple[int, ...] = ()


class OncePerPass(nn.Module):
    """Runs `net()` once per forward pass of a stack, however many pieces and rows read it.

    The MLP of a prefix makes the keys of all layers. Run by each layer's piece, it would run once
    a layer and row group; run inside a checkpointed block, once more in backward. So the stack
    renews the value at its entrance, before any block, and pieces read it:

        stack entered      once.renew()    value = net(), with its graph
        block 0 … L-1      once()          the same value
        stack left         once.forget()   nothing with a graph outlives the pass
        backward           the value of this pass is put back before a block is recomputed

    value: that of the pass under way in this thread; None where there was none yet.
    """

    def __init__(self, net: nn.Module, stack: str):
        super().__init__()
        self.net = net
        self.stack = stack
        self._pass = _Once()

    @property
    def value(self) -> Tensor | None:  # noqa: D102
        return self._pass.value

    @value.setter
    def value(self, value: Tensor | None) -> None:
        self._pass.value = value

    def renew(self) -> None:
        """Run `net` for a new pass, unless nothing can have changed and no graph is needed."""
        if torch.compiler.is_compiling():  # the graph of the pass has it once anyway
            self.value = self.net()
            return
        versions = tuple(p._version for p in self.net.parameters())
        value = self.value
        stale = value is None or value.requires_grad or versions != self._pass.versions
        if stale or torch.is_grad_enabled():
            self.value = self.net()
            self._pass.versions = versions

    def forget(self) -> None:
        """Drop a value that has a graph; until the next pass the net runs wherever it is read."""
        if self.value is not None and self.value.requires_grad:
            self.value = None

    @override
    def forward(self) -> Tensor:
        value = self.value
        return self.net() if value is None else value
