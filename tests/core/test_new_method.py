"""Adding a method is adding one file: a throw-away one, found, listed and under every law."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import inlay
from inlay.laws import LAWS, Case, NotApplicable
from tests import zoo

FILE = '''
"""Echo: y + g ⊙ x, for projections that keep their width."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from inlay.core.context import PassContext
from inlay.core.piece import Foldable, OutputDelta
from inlay.core.site import Site, Where
from inlay.core.method import Method, Shared, require_site


@dataclass(frozen=True, repr=False)
class Echo(Method):
    """A gated copy of the input. at: square projections."""

    at: Where = Where(("attn.o",))

    identity: ClassVar[bool] = True

    def build(self, site: Site, shared: Shared) -> "Gate":
        require_site(self, site, site.is_projection and site.d_in == site.d_out, "square projections")
        return Gate(site.d_out)


Echo.examples = (Echo(),)


class Gate(Foldable, OutputDelta):
    def __init__(self, width: int):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(width))

    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return x * self.gate

    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return w + torch.diag(self.gate.detach()), b
'''


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "echo.py"
    path.write_text(FILE)
    spec = importlib.util.spec_from_file_location("inlay.methods.echo", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["inlay.methods.echo"] = module
    spec.loader.exec_module(module)
    yield inlay.METHODS["Echo"]
    del inlay.METHODS["Echo"], sys.modules["inlay.methods.echo"]


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_every_law_holds(echo: Any, family: str) -> None:
    assert inlay.Echo is echo and inlay.parse("Echo()") == echo()
    case = Case(zoo.model(family), echo.examples[0])
    held = 0
    for law in LAWS.values():
        try:
            law(case)
            held += 1
        except NotApplicable:
            continue
    assert held >= 6
