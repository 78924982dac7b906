"""Merging: fold an inlay into the base's weights. All or nothing, but for trained heads."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from inlay.core.method import sum_of
from inlay.core.piece import Foldable, InputMap, Piece
from inlay.core.site import Site, stored_transposed
from inlay.errors import MergeError
from inlay.handle import Inlay, attach

Written = tuple[nn.Parameter, Tensor]


def merge(handle: Inlay) -> PreTrainedModel:
    """Fold the pieces of an inlay and detach it. See `Inlay.merge`."""
    others = [name for name in handle.root.handles if name != handle.name]
    if others:
        raise MergeError(
            f"{', '.join(map(repr, others))} would sit on a base that has changed; "
            "detach every other inlay first"
        )
    methods = handle.spec.methods
    judging = [number for number, method in enumerate(methods) if method.has_head]
    for parameter, value in plan(handle):
        parameter.data.copy_(value)
    model = handle.detach()
    if judging:
        kept = attach(model, sum_of([methods[n] for n in judging]), name=handle.name)
        kept.take(handle, dict(enumerate(judging)))
    return model


def plan(handle: Inlay) -> list[Written]:
    """Every write that merging would do: (parameter, its new value in fp32).

    A piece that judges what the base has computed has no place in its weights, and is left out.

    Raises MergeError where a piece cannot be folded, with nothing written.
    """
    hosts: dict[int, Host] = {}
    places: dict[str, tuple[Site, list[Piece]]] = {}
    for key, site, piece in handle.pieces():
        method = handle.spec.methods[int(key.rsplit("/", 1)[1])]
        if method.has_head:
            continue
        if not isinstance(piece, Foldable):
            raise MergeError(
                f"{type(method).__name__} at {site.name} cannot be folded into weights: no linear "
                "map computes it"
            )
        places.setdefault(site.name, (site, []))[1].append(piece)
    if not places:
        raise MergeError(
            f"{handle.spec!r} only judges what the base has computed; there is nothing to fold"
        )
    tied = _tied(handle.model)
    for site, pieces in places.values():
        host = hosts.setdefault(id(site.host), Host(site.host))
        if id(host.weight) in tied:
            raise MergeError(
                f"{site.name} shares its matrix with another part of the model, "
                "which merging would change as well"
            )
        w, b = host.part(site)
        # what acts on the way in sees x first, so it is folded last
        for piece in sorted(pieces, key=lambda piece: isinstance(piece, InputMap)):
            assert isinstance(piece, Foldable)
            try:
                w, b = piece.fold(w, b)
            except MergeError as error:
                raise MergeError(f"{site.name}: {error}") from None
        host.put(site, w, b)
    return [change for host in hosts.values() for change in host.changes()]


class Host:
    """A host's weights in fp32, `[d_out, d_in]`, while sites of it are folded."""

    def __init__(self, module: nn.Module):
        weight = module.weight
        if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
            raise MergeError(
                f"{type(module).__name__} is quantised; dequantise the base before merging"
            )
        self.weight = weight
        self.transposed = stored_transposed(module)
        self.bias = getattr(module, "bias", None)
        self.w = weight.detach().float().clone()
        if self.transposed:
            self.w = self.w.T.contiguous()
        self.b = None if self.bias is None else self.bias.detach().float().clone()

    def part(self, site: Site) -> tuple[Tensor, Tensor | None]:
        """The site's own rows."""
        if site.part is None:
            return self.w, self.b
        w, b = site.part.take(self.w, 0), self.b
        return w.clone(), None if b is None else site.part.take(b, 0).clone()

    def put(self, site: Site, w: Tensor, b: Tensor | None) -> None:
        """Take over a site's new rows."""
        if site.part is None:
            self.w, self.b = w, b
            return
        site.part.write(self.w, w)
        if self.b is not None and b is not None:
            site.part.write(self.b, b)

    def changes(self) -> list[Written]:
        """The writes."""
        made: list[Written] = [(self.weight, self.w.T if self.transposed else self.w)]
        if self.b is not None:
            assert self.bias is not None
            made.append((self.bias, self.b))
        return made


def _tied(model: PreTrainedModel) -> set[int]:
    """Ids of the parameters that several modules hold."""
    holders: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(id(parameter), set()).add(id(module))
    return {number for number, modules in holders.items() if len(modules) > 1}
