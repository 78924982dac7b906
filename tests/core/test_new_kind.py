"""A new kind of piece is one file: its class, its port, and a method that builds it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import inlay
from inlay.core.method import METHODS
from inlay.errors import PortError
from inlay.laws.traces import snapshot
from inlay.runtime.port import PORTS
from inlay.testing import laws_hold
from tests import zoo

FILE = '''
"""Offset: h + b, added to the last state of a stack by a port of its own."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from inlay.architectures.chart import last_state
from inlay.core.method import Method, Shared
from inlay.core.piece import Piece
from inlay.core.site import Site, Where
from inlay.errors import PortError
from inlay.runtime.port import Port, accepts
from inlay.runtime.stack_inputs import replace_last_state


class StateOffset(Piece):
    """Adds to the last hidden state: a kind of its own."""

    def __init__(self, width: int):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(width))

    def forward(self, state: Tensor) -> Tensor:
        return state + self.offset.to(state.dtype)


@accepts(StateOffset)
class StateOffsetPort(Port):
    """The offsets of one stack, by inlay."""

    label = "last state"

    def __init__(self, state):
        super().__init__(state)
        self.pieces = {}

    @classmethod
    def check(cls, method, site, piece, chart):
        if site.role not in ("final", "final.target"):
            raise PortError(f"{method} acts on the last state, not at {site.role!r}")

    def add(self, name, site, piece):
        self.pieces.setdefault(name, []).append(piece)

    def remove(self, name):
        self.pieces.pop(name, None)

    def leave(self, output):
        state = last_state(output)
        groups = self.routing.groups(len(state), self.pieces)
        if groups is None:
            return output
        return replace_last_state(output, groups.apply(self._run, (state,), self.state.context))

    def _run(self, names, state, context):
        for name in names:
            for piece in self.pieces[name]:
                state = piece(state)
        return state


@dataclass(frozen=True, repr=False)
class Offset(Method):
    """An offset of the last state."""

    at: Where = Where(("final?", "final.target?"))
    identity: ClassVar[bool] = True

    def build(self, site: Site, shared: Shared) -> StateOffset:
        return StateOffset(site.d_out)


Offset.examples = (Offset(),)
'''


@pytest.fixture
def offset(tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "offset_kind.py"
    path.write_text(FILE)
    spec = importlib.util.spec_from_file_location("offset_kind", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["offset_kind"] = module
    spec.loader.exec_module(module)
    yield module
    del METHODS["Offset"], PORTS[module.StateOffset], sys.modules["offset_kind"]


@pytest.mark.parametrize("family", ["llama", "t5", "bert"])
def test_every_law_holds(offset: Any, family: str) -> None:
    verdict = laws_hold(offset.Offset(), family)
    assert verdict.refusal is None
    assert {"identity", "no trace", "only pieces learn", "rows do not meet"} <= set(verdict.spoke)


def test_it_is_added_to_a_base_that_has_inlays_already(offset: Any) -> None:
    model = zoo.fresh("llama")
    before = snapshot(model)
    lora = inlay.attach(model, inlay.LoRA(rank=2), name="lora")
    handle = inlay.attach(model, offset.Offset(), name="offset")
    ids = torch.randint(8, 99, (1, 5))
    plain = model.model(input_ids=ids).last_hidden_state
    with torch.no_grad():
        next(handle.parameters()).fill_(1.0)
    moved = model.model(input_ids=ids).last_hidden_state
    assert torch.allclose(moved, plain + 1, atol=1e-6)
    handle.detach()
    lora.detach()
    assert snapshot(model) == before


def test_its_port_says_where_it_goes(offset: Any) -> None:
    with pytest.raises(PortError):
        inlay.attach(zoo.fresh("llama"), offset.Offset(at=inlay.Where(("mlp",))))


def test_a_kind_without_a_port_is_refused(offset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(PORTS, offset.StateOffset)
    try:
        with pytest.raises(PortError):
            inlay.attach(zoo.fresh("llama"), offset.Offset())
    finally:
        monkeypatch.undo()
