"""Every default that is a number says where it comes from."""

from __future__ import annotations

import dataclasses

import pytest

from inlay import METHODS

OWN = [kind for kind in METHODS.values() if kind.__module__.startswith("inlay.methods.")]


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
def test_numbers_have_a_source(kind: type) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    numbers = {name for name, value in fields.items() if isinstance(value, (int, float))}
    switches = {name for name in numbers if isinstance(fields[name], bool)}
    assert set(kind.sources) >= (numbers - switches) | {"lr"}
    assert set(kind.sources) <= set(fields) | {"lr"}
    assert all(kind.sources.values())
