"""What pieces decide, as maps: a line for each layer, a column for each number that is decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.inspect import PlaceReading

Column = tuple[int, str, str]
"""The number of a method in the inlay, a role, and the name of a number."""


@dataclass(frozen=True)
class ReadingMap:
    """Everything of one kind that is decided in one stack. L layers, C columns, B texts.

    title: the heading. axis: what the columns are, such as "adapter".
    layers, columns: in words.
    values: `[L, C, B]`, nan where a layer has no such number.
    mean: `[L, C]`, over the positions of all texts.
    """

    title: str
    axis: str
    layers: tuple[str, ...]
    columns: tuple[str, ...]
    values: Tensor
    mean: Tensor

    @property
    def by_text(self) -> Tensor:
        """`[B, C]`, the mean over the layers that have the number."""
        return self.values.nanmean(0).T

    @property
    def depends(self) -> bool:
        """Whether any number is another for another text."""
        return bool(((self.values - self.values.nanmean(-1, keepdim=True)).abs() > 1e-6).any())


def maps(readings: Sequence[PlaceReading]) -> list[ReadingMap]:
    """Readings of one kind in one stack, put together.

    Those of single numbers stand side by side, whatever their places; of several numbers each role
    of places has a map of its own.
    """
    groups: dict[tuple[str, str, str], list[PlaceReading]] = {}
    for reading in readings:
        site = reading.placed.site
        role = site.role if len(reading.names) > 1 else ""
        groups.setdefault((reading.what, site.stack, role), []).append(reading)
    counts = Counter((what, stack) for what, stack, _ in groups)
    return [
        _map(f"{what}{f' at {role}' if counts[what, stack] > 1 else ''}, in the {stack}", group)
        for (what, stack, role), group in groups.items()
    ]


def _map(title: str, group: Sequence[PlaceReading]) -> ReadingMap:
    import torch

    layers = list(dict.fromkeys(reading.placed.site.layer for reading in group))
    layers.sort(key=lambda layer: (layer is None, layer or 0))
    columns = list(dict.fromkeys(column for reading in group for column in _columns(reading)))
    values = torch.full((len(layers), len(columns), len(group[0].values)), torch.nan)
    mean = torch.full((len(layers), len(columns)), torch.nan)
    cells: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
    for reading in group:
        line = layers.index(reading.placed.site.layer)
        for number, column in enumerate(_columns(reading)):
            pair = (reading.values[:, number], reading.mean[number])
            cells.setdefault((line, columns.index(column)), []).append(pair)
    for (line, place), pairs in cells.items():  # several where a layer has many such places
        values[line, place] = torch.stack([by_text for by_text, _ in pairs]).nanmean(0)
        mean[line, place] = torch.stack([whole for _, whole in pairs]).mean()
    return ReadingMap(
        f"{title[:1].upper()}{title[1:]}",
        group[0].axis,
        tuple("–" if layer is None else str(layer) for layer in layers),
        _labels(columns),
        values,
        mean,
    )


def _columns(reading: PlaceReading) -> list[Column]:
    placed = reading.placed
    return [(placed.index, placed.site.role, name) for name in reading.names]


def _labels(columns: Sequence[Column]) -> tuple[str, ...]:
    """The names alone where they tell columns apart, else with the role of the place."""
    names = [name for _, _, name in columns]
    roles = {role for _, role, _ in columns}
    if len(set(names)) == len(names) and (len(roles) == 1 or len(names) == len(roles)):
        return tuple(names)
    return tuple(f"{name} at {role}" for _, role, name in columns)


def as_entry(reading: PlaceReading) -> dict[str, Any]:
    """One reading as JSON: the values of every text, and their mean."""
    site = reading.placed.site
    return {
        "what": reading.what,
        "place": reading.placed.name,
        "stack": site.stack,
        "layer": site.layer,
        "role": site.role,
        "names": list(reading.names),
        "values": [[None if v != v else v for v in row] for row in reading.values.tolist()],
        "mean": reading.mean.tolist(),
    }


def rounded(value: float) -> str:
    """0.3127 -> 0.313; nothing where a layer has no such number."""
    return "" if value != value else f"{value:.3f}"
