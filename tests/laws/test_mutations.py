"""The laws are laws: each known way to break the library is noticed by the law that is for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inlay.laws import LAWS, Broken, Case, NotApplicable
from tests import zoo
from tests.core import interfaces
from tests.laws.mutations import MUTATIONS, Mutation, merged_before_refusing


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with interfaces.registered():
        yield


@pytest.mark.parametrize(
    "mutation", MUTATIONS, ids=lambda m: f"{m.name}-{m.family}-{type(m.spec).__name__}"
)
def test_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(zoo.fresh(mutation.family), mutation.spec)
    if mutation.breaks is merged_before_refusing:
        with pytest.raises(NotApplicable):
            LAWS[mutation.law](case)
    else:
        LAWS[mutation.law](case)  # holds before the damage
    case = Case(zoo.fresh(mutation.family), mutation.spec)
    mutation.breaks(monkeypatch)
    with pytest.raises(Broken):
        LAWS[mutation.law](case)
