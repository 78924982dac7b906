"""Adding a method is adding one file: in this package, or in another through its entry point."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import inlay
from inlay.errors import LawError
from inlay.testing import FAMILIES, check_method
from inlay.testing.models import tiny_model

FILE = '''
"""Echo: y + g ⊙ x, for projections that keep their width."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from inlay import Method, Site, Where
from inlay.core.context import PassContext
from inlay.core.method import Shared, require_site
from inlay.core.piece import Foldable, OutputDelta


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

BROKEN = FILE.replace("Echo", "Crooked").replace("torch.diag(", "2 * torch.diag(")

TEST = """
import inlay
import pytest
from inlay.testing import check_method, laws_hold


def test_it_is_found_by_its_name():
    assert inlay.parse("Echo()") == inlay.Echo()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_laws(family):
    check_method(inlay.Echo, families=[family])
    assert "merge" in laws_hold(inlay.Echo(), family).spoke
"""


def load_file(path: Path, text: str, name: str) -> Iterator[Any]:
    """A file as a module, whose method is forgotten afterwards."""
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    before = set(inlay.METHODS)
    spec.loader.exec_module(module)
    yield module
    for method in set(inlay.METHODS) - before:
        del inlay.METHODS[method]
    del sys.modules[name]


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Any]:
    for module in load_file(tmp_path / "echo.py", FILE, "inlay.methods.echo"):
        yield module.Echo


@pytest.fixture
def crooked(tmp_path: Path) -> Iterator[Any]:
    for module in load_file(tmp_path / "crooked.py", BROKEN, "inlay.methods.crooked"):
        yield module.Crooked


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mamba2"])  # it has no attention
def test_every_law_holds(echo: Any, family: str) -> None:
    assert inlay.Echo is echo and inlay.parse("Echo()") == echo()
    for verdict in check_method(echo, families=[family]).values():
        assert len(verdict.spoke) >= 6


def test_the_law_that_a_broken_method_breaks_is_named(crooked: Any) -> None:
    with pytest.raises(LawError) as caught:
        check_method(crooked, families=["bert"])
    assert "merge: Broken" in str(caught.value)


def test_a_method_without_examples_or_places_is_refused(
    echo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(echo, "examples", (echo(at=inlay.Where(("cross.o",))),))
    with pytest.raises(LawError):
        check_method(echo, families=["llama"])
    monkeypatch.setattr(echo, "examples", ())
    with pytest.raises(LawError):
        check_method(echo)


def test_tiny_models_are_equal_and_independent() -> None:
    first, second = tiny_model("llama"), tiny_model("llama")
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(a is not b and a.equal(b) for a, b in pairs)


def test_a_package_outside_is_found_and_tests_itself(tmp_path: Path) -> None:
    """A method in another package: its entry point, and its own tests with inlay.testing."""
    package = tmp_path / "site"
    (package / "echo_package").mkdir(parents=True)
    (package / "echo_package" / "__init__.py").write_text("")
    (package / "echo_package" / "echo.py").write_text(FILE)
    info = package / "echo_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[inlay.methods]\necho = echo_package.echo\n")
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_echo.py").write_text(TEST)
    source = Path(inlay.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(source)])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 passed" in result.stdout
