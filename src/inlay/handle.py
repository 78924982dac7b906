"""attach, detach and the handle between them: the only file that changes a model.

While anything is attached the base has one more child, `model.inlays`. Because the pieces are a
child like any other, `model.to`, `model.train`, every optimiser, `transformers.Trainer`, deep
copies and pickling treat them as one expects. The base's own classes, parameter names and values
stay as they are; `detach` takes the child and every hook away again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from inlay.architectures.chart import Chart
from inlay.architectures.resolve import need_model, resolve
from inlay.core.method import Method, Shared, Spec
from inlay.core.piece import (
    ExtraKV,
    HeadPiece,
    InputMap,
    OutputDelta,
    Piece,
    PromptVectors,
    VirtualTokenDelta,
    VirtualTokens,
)
from inlay.core.site import Site
from inlay.errors import InlayError, NamingError, PortError, SiteError, SpecError
from inlay.runtime import attention
from inlay.runtime.activations import keys_and_values
from inlay.runtime.container import CHILD, Container, PieceSet, container_of
from inlay.runtime.module_hooks import ModuleHooks
from inlay.runtime.routing import Asked, Names


class Inlay:
    """A handle on all pieces of one attached spec.

    name:    how `rows` calls it. spec: what was attached. enabled: whether it acts; a disabled
    inlay stays where it is and changes nothing.
    """

    def __init__(
        self, model: PreTrainedModel, name: str, spec: Spec, pieces: PieceSet, root: Container
    ):
        self.model = model
        self.name = name
        self.spec = spec
        self._set = pieces
        self._root: Container | None = root

    @property
    def root(self) -> Container:
        """The ports of the base. Raises NamingError after `detach`."""
        if self._root is None:
            raise NamingError(f"the inlay {self.name!r} is not attached any more")
        return self._root

    @property
    def attached(self) -> bool:
        """Whether it is set in."""
        return self._root is not None

    @property
    def enabled(self) -> bool:
        """Whether it acts; may be set."""
        return self.root.route.known[self.name]

    @enabled.setter
    def enabled(self, acts: bool) -> None:
        self.root.route.enable(self.name, bool(acts))

    @property
    def virtual(self) -> int:
        """How many virtual tokens it has, for a template to place."""
        return sum(
            piece.length for _, _, piece in self.pieces() if isinstance(piece, VirtualTokens)
        )

    def parameters(self) -> Iterator[nn.Parameter]:
        """Everything that learns, each once: what an optimiser is given."""
        return self._set.parameters()

    def by_method(self) -> list[tuple[Method, list[nn.Parameter]]]:
        """What learns, method by method."""
        groups: list[dict[nn.Parameter, None]] = [{} for _ in self.spec.methods]
        for tree in (self._set.pieces, self._set.shared):
            for key, part in tree.items():
                groups[_parted(key)[0]].update(dict.fromkeys(part.parameters()))
        pairs = zip(self.spec.methods, groups, strict=True)
        return [(method, list(own)) for method, own in pairs]

    def pieces(self) -> Iterator[tuple[str, Site, Piece]]:
        """(key, site, piece) of every piece; a key is `site/number of the method`."""
        return self._set.items()

    def named_tensors(self) -> dict[str, Tensor]:
        """What a file holds: `decoder.3.attn.q/0/lora/a` -> tensor, detached, sharing memory."""
        kinds = [type(method).__name__.lower() for method in self.spec.methods]
        return {
            f"{key}/{kinds[int(key.rsplit('/', 1)[1])]}/{part}": tensor
            for key, _, piece in self.pieces()
            for part, tensor in piece.export().items()
        }

    def training_state(self) -> dict[str, Tensor]:
        """Everything that learns, reparameterisations included, for checkpoints."""
        return {name: tensor.detach() for name, tensor in self._set.state_dict().items()}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `training_state` of an equal inlay returned."""
        self._set.load_state_dict(state)

    def take(self, other: Inlay, numbers: Mapping[int, int]) -> None:
        """Copy the numbers of another inlay's methods, where both have them.

        numbers: number of a method here -> its number in `other`.
        """
        for mine, theirs in (
            (self._set.pieces, other._set.pieces),
            (self._set.shared, other._set.shared),
        ):
            for key, part in mine.items():
                number, place = _parted(key)
                same = {_parted(k): p for k, p in theirs.items()}.get((numbers[number], place))
                if same is not None:
                    part.load_state_dict(same.state_dict())

    def count(self) -> int:
        """How many numbers learn."""
        return sum(p.numel() for p in self.parameters())

    def save(self, path: str | Path, *, tokenizer: Any = None) -> Path:
        """Write one file, whole or not at all. With a tokenizer, its fingerprint goes in too."""
        from inlay.files.format import save

        return save(self, path, tokenizer)

    def merge(self) -> PreTrainedModel:
        """Fold every piece into the base's weights and detach; all or nothing.

        A trained head cannot be folded: it stays attached alone, under the same name, and can be
        saved beside the new base (`inlay.attached(model)` finds it).

        Returns the base. Raises MergeError before the first write where a piece cannot be folded.
        """
        from inlay.merge import merge

        return merge(self)

    def detach(self) -> PreTrainedModel:
        """Take the inlay out and leave no trace. The handle keeps its tensors; returns the base."""
        root = self.root
        for number, port in list(root.taps.items()):
            if port.drop(self.name):
                del root.taps[number]
        for door in root.doors:
            door.slots.pieces.pop(self.name, None)
            door.tokens.pieces.pop(self.name, None)
            door.shifts.pop(self.name, None)
            door.shared.pop(self.name, None)
        for _, site, piece in self.pieces():
            if isinstance(piece, ExtraKV):
                root.door(site.stack).keys[site.name].pieces.pop(self.name, None)
        del root.sets[self.name], root.handles[self.name]
        root.route.forget(self.name)
        if not root.handles:
            _uproot(self.model, root)
        self._root = None
        return self.model

    def __repr__(self) -> str:
        state = "" if self.attached else ", detached"
        numbers = {i: [0, 0, type(m).__name__] for i, m in enumerate(self.spec.methods)}
        rows = [f"{self.name}: {self.spec!r} ({self.count():,} numbers{state})"]
        plan: dict[tuple[int, str], list[Any]] = {}
        for key, site, piece in self.pieces():
            number = int(key.rsplit("/", 1)[1])
            entry = plan.setdefault((number, site.role), [0, 0])
            entry[0] += 1
            entry[1] += sum(p.numel() for p in piece.parameters())
        for (number, role), (places, size) in plan.items():
            rows.append(f"  {numbers[number][2]:<10} {role:<12} × {places:<4} {size:>14,}")
        shared = sum(p.numel() for p in self._set.shared.parameters())
        if shared:
            rows.append(f"  {'':<10} {'shared':<12}        {shared:>14,}")
        return "\n".join(rows)


def attach(model: PreTrainedModel, spec: Spec, *, name: str = "default") -> Inlay:
    """Set the pieces of a spec into a model and freeze the rest.

    model: any transformers model. spec: a method or a sum, `LoRA(rank=8) + Prefix(length=10)`.
    name: letters, digits, `_` and `-`.

    Raises SpecError, SiteError, PortError or NamingError; then the model is as it was.
    """
    if not isinstance(spec, Spec):
        raise SpecError(f"attach takes a method such as LoRA(rank=8), not {spec!r:.60}")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
        raise NamingError(f"an inlay's name is letters, digits, '_' and '-', not {name!r:.120}")
    need_model(model)
    present = attached(model)
    if name in present:
        raise NamingError(f"an inlay called {name!r} is attached already; detach it or rename")
    if not present and getattr(model, CHILD, None) is not None:
        raise SpecError(f"this model has a part of its own called {CHILD!r}; inlay needs the name")
    root = container_of(model)
    if root is not None and root.chart.base is not model:
        raise NamingError("inlays are attached to a model inside or around this one; use that one")
    chart = resolve(model) if root is None else root.chart
    pieces = _build(chart, spec)
    if root is None:
        root = _plant(model, chart)
    handle = Inlay(model, name, spec, pieces, root)
    root.sets[name] = pieces.train(model.training)
    root.handles[name] = handle
    root.route.enable(name, True)
    for door in root.doors:
        door.shifts[name] = pieces.shift(door.stack.name)
    for once in pieces.onces():
        root.door(once.stack).shared.setdefault(name, []).append(once)
    for _, site, piece in pieces.items():
        _install(root, name, site, piece)
    return handle


def attached(model: PreTrainedModel) -> dict[str, Inlay]:
    """Every inlay that is set into a model, by name; of a deep copy, the copy's own."""
    root = container_of(model)
    return {} if root is None else dict(root.handles)


class rows:  # noqa: N801  # reads as a verb: `with rows(model, [...]):`
    """Say which inlay serves which row of the batch.

    names: one entry a row: a name, a tuple of names, or None for the bare base. A batch with k
    times as many rows (beams) keeps them in order. `rows(model, None)` goes back to the default:
    every enabled inlay serves every row.

    Holds from the call on; used with `with`, until the end of the block.

        with rows(model, ["legal", None, "medical"]):
            model.generate(**batch)
    """

    def __init__(self, model: PreTrainedModel, names: Asked | None):
        root = container_of(model)
        if root is None:
            raise NamingError("no inlay is attached to this model; attach or load one first")
        self._route = root.route
        self._before: tuple[Names, ...] | None = root.route.asked
        root.route.ask(names)

    def __enter__(self) -> rows:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._route.asked = self._before
        self._route.bind()


def _parted(key: str) -> tuple[int, str]:
    """The number of the method, and the rest of a key: `site/1` of a piece, `1/name` of a part."""
    left, right = key.split("/")
    return (int(right), left) if right.isdigit() else (int(left), right)


def _build(chart: Chart, spec: Spec) -> PieceSet:
    """All pieces of a spec, ready but not installed. The base is not touched."""
    made = PieceSet()
    for number, method in enumerate(spec.methods):
        sites = _sites(chart, method)
        embed = chart.stacks[0].embed
        known = 0 if embed is None else len(embed.weight)  # type: ignore[arg-type]
        shared = Shared(sites, lambda ids: keys_and_values(chart, ids), known)
        own: dict[str, Piece] = {}
        for site in sites:
            piece = method.build(site, shared)
            if piece is None:
                continue
            _check_port(chart, method, site, piece)
            own[site.name] = piece.to(site.device())
            made.add(site, number, piece)
        if not own:
            raise SiteError(f"{method!r} finds nothing to do in {type(chart.base).__name__}")
        for key, once in shared.modules.items():
            made.share(f"{number}/{key}", once.to(sites[0].device()))
        method.finish(own, shared)
    for parameter in made.parameters():
        parameter.requires_grad_(True)
    return made


def _sites(chart: Chart, method: Method) -> list[Site]:
    try:
        return chart.find(method.at)
    except InlayError as error:
        model = type(chart.base).__name__
        raise type(error)(f"{type(method).__name__} on {model}: {error}") from None


def _check_port(chart: Chart, method: Method, site: Site, piece: Piece) -> None:
    who = type(method).__name__
    if isinstance(piece, ExtraKV):
        if site.heads == 0:
            raise PortError(
                f"{who} adds keys, and {site.role!r} is not an attention: use 'attn.kv'"
            )
        if not attention.has_port(site.host):
            raise PortError(
                f"{who} adds keys, but {type(site.host).__name__} does not go through "
                "transformers' attention interface; taps (LoRA, adapters) and prompts work here"
            )
        attention.check_way_in(attention.configs(chart.base))
        if piece.shift and not chart.stack(site.stack).takes("position_ids"):
            raise PortError(
                f"{who} moves the text's positions, and {type(chart.base).__name__} is not given "
                "any; use shifts=False"
            )
    elif isinstance(piece, (PromptVectors, VirtualTokens)) and site.role not in (
        "embed",
        "embed.target",
    ):
        raise PortError(f"{who} adds positions, which stand at 'embed', not at {site.role!r}")
    elif isinstance(piece, PromptVectors) and chart.stack(site.stack).keeps_state:
        raise PortError(
            f"{who} stands in front of a text once, and {type(chart.base).__name__} does not say "
            "which pass begins one; virtual tokens work here: PTuning, and {p*3} in the template"
        )
    elif isinstance(piece, (OutputDelta, InputMap, VirtualTokenDelta)) and (
        site.heads or site.role == "final"
    ):
        raise PortError(f"{who} changes the output of a module, and {site.role!r} is none")


def _plant(model: PreTrainedModel, chart: Chart) -> Container:
    root = Container(chart)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.add_module(CHILD, root)
    for frame in root.frames:
        frame.hang()
    attention.enter(attention.configs(model))
    return root


def _uproot(model: PreTrainedModel, root: Container) -> None:
    for frame in root.frames:
        frame.unhang()
    attention.leave(attention.configs(model))
    del model._modules[CHILD]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in root.learning:
        model.get_parameter(name).requires_grad_(True)


def _install(root: Container, name: str, site: Site, piece: Piece) -> None:
    door = root.door(site.stack)
    if isinstance(piece, ExtraKV):
        door.keys[site.name].pieces.setdefault(name, []).append(piece)
    elif isinstance(piece, PromptVectors):
        door.slots.pieces.setdefault(name, []).append(piece)
    elif isinstance(piece, VirtualTokens):
        door.tokens.pieces.setdefault(name, []).append(piece)
    elif not isinstance(piece, HeadPiece):
        port = root.taps.get(site.name)
        if port is None:
            port = root.taps[site.name] = ModuleHooks(site, root.route, door.tokens)
        port.add(name, piece)
