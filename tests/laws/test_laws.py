"""Every law, for every method's examples, on every family of the zoo."""

from __future__ import annotations

import pytest

import inlay
from inlay.errors import SiteError
from inlay.laws import LAWS, Case, NotApplicable
from tests import zoo

SPECS = [example for kind in inlay.METHODS.values() for example in kind.examples]
SUMS = [
    inlay.LoRA(rank=2) + inlay.Prefix(length=2, mlp=None),
    inlay.Houlsby(bottleneck=3, std=0.1) + inlay.LoRA(rank=2) + inlay.IA3(),
    inlay.Prompt(length=2) + inlay.Prefix(length=3, mlp=None) + inlay.BitFit(),
]


def case(family: str, spec: inlay.Method) -> Case:
    """The case, or a skip where this family has no such place: that refusal has tests of its own."""
    try:
        return Case(zoo.model(family), spec)
    except SiteError as refusal:
        pytest.skip(str(refusal))


PORTABLE = {"llama", "bert"}
"""Families whose laws are tried with the kernels of other processors too."""

EVERY = [
    pytest.param(family, marks=pytest.mark.processor if family in PORTABLE else ())
    for family in zoo.FAMILIES
]


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("spec", [*SPECS, *SUMS], ids=repr)
def test_laws(family: str, spec: inlay.Method) -> None:
    subject = case(family, spec)
    broken = []
    for name, law in LAWS.items():
        try:
            law(subject)
        except NotApplicable:
            continue
        except Exception as error:
            broken.append(f"{name}: {type(error).__name__}: {error}")
    assert not broken, "\n".join(broken)
