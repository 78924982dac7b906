"""Building the pieces of a spec, and getting them into a base and out again."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

from inlay.architectures.chart import Chart
from inlay.architectures.paths import CHILD
from inlay.core.method import Method, Placed, Shared, Spec
from inlay.core.piece import Piece
from inlay.core.piece_set import PieceSet
from inlay.core.quantised import allow_layout, keep_layout
from inlay.core.site import Site
from inlay.errors import InlayError, PortError, SiteError
from inlay.runtime.activations import keys_and_values
from inlay.runtime.container import Container
from inlay.runtime.cures import cure, missing_roles
from inlay.runtime.port import port_for
from inlay.runtime.reminder import Reminder
from inlay.runtime.side import check_gradients

Prepared = Mapping[int, Mapping[str, Tensor]]
"""What `Method.prepare` returned, by the number of the method in the spec."""


def build(chart: Chart, spec: Spec, prepared: Prepared | None = None) -> PieceSet:
    """All pieces of a spec, ready but not installed. The base is not touched.

    Raises SpecError, SiteError or PortError where a method does not fit the base.
    """
    spec = spec.expand(chart.sites)
    placed: list[Placed] = []
    modules: dict[tuple[int, str], nn.Module] = {}
    for index, method in enumerate(spec.methods):
        sites = sites_of(chart, method)
        shared = Shared(
            sites,
            lambda ids: keys_and_values(chart, ids),
            chart.stacks[0].vocabulary,
            {} if prepared is None else prepared.get(index),
        )
        pieces = _pieces(chart, method, shared)
        used = [site for site in sites if site.name in pieces]
        placed += [Placed(site, index, method, pieces[site.name]) for site in used]
        for key, module in shared.modules.items():
            modules[index, key] = module.to(sites[0].device())
        method.finish(pieces, shared)
    check_gradients(placed)
    return PieceSet(spec, placed, modules)


def sites_of(chart: Chart, method: Method) -> list[Site]:
    """The sites of a method. Raises SiteError, which says what would work, where it has none."""
    try:
        return chart.find(method.at)
    except InlayError as error:
        place = f"{type(method).__name__} on {type(chart.base).__name__}"
        missing = missing_roles(chart, method.at)
        if not missing:
            raise type(error)(f"{place}: {error}") from None
        roles = " or ".join(map(repr, missing))
        raise SiteError(f"{place}: this model has no {roles}{cure(chart, method)}") from None


def create_container(model: PreTrainedModel, chart: Chart) -> Container:
    """Freeze a base and give it the child that holds inlays."""
    container = Container(chart)
    container.kept_layouts = keep_layout(model.modules())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.add_module(CHILD, container)
    for hooks in container.hooks:
        hooks.hook()
    return container


def remove_container(model: PreTrainedModel, container: Container) -> None:
    """Leave the base as it was before anything was attached."""
    for hooks in container.hooks:
        hooks.unhook()
    del model._modules[CHILD]
    allow_layout(container.kept_layouts)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in container.trained:
        model.get_parameter(name).requires_grad_(True)


def install(container: Container, name: str, pieces: PieceSet) -> None:
    """Let the pieces of an inlay act. Raises PortError, with nothing changed, where two cannot."""
    try:
        _install(container, name, pieces)
    except InlayError:
        uninstall(container, name)
        raise


def _install(container: Container, name: str, pieces: PieceSet) -> None:
    container.sets[name] = pieces.train(container.chart.base.training)
    container.routing.enable(name, True)
    reminder = container.reminders[name] = Reminder(name, pieces)
    for stack in container.stacks:
        stack.state.shifts[name] = pieces.shift(stack.stack.name)
        stack.reminders[name] = reminder
    for once in pieces.once_per_pass():
        container.stack(once.stack).once.setdefault(name, []).append(once)
    for placed in pieces.placed:
        stack = container.stack(placed.site.stack)
        stack.state.port(port_for(placed.piece)).add(name, placed.site, placed.piece)
        parts = [part for part in placed.piece.modules() if isinstance(part, Piece)]
        if any(part.draws for part in parts):
            stack.state.drawing.add(name)
        if any(part.relates_positions for part in parts):
            stack.state.relating.add(name)


def uninstall(container: Container, name: str) -> None:
    """Take the pieces of an inlay out."""
    for stack in container.stacks:
        stack.remove(name)
    del container.sets[name], container.reminders[name]
    container.routing.forget(name)


def _pieces(chart: Chart, method: Method, shared: Shared) -> dict[str, Piece]:
    """The pieces of one method, by the name of their site."""
    pieces: dict[str, Piece] = {}
    for site in shared.sites:
        piece = method.build(site, shared)
        if piece is None:
            continue
        _check_kind(method, site, piece, chart)
        pieces[site.name] = piece.to(site.device())
    if not pieces:
        raise SiteError(f"{method!r} finds nothing to do in {type(chart.base).__name__}")
    return pieces


def _check_kind(method: Method, site: Site, piece: Piece, chart: Chart) -> None:
    kind = type(method).__name__
    if not isinstance(piece, Piece):
        raise PortError(f"{kind}.build returned {piece!r:.60}, which is no Piece")
    port_for(piece).check(kind, site, piece, chart)
