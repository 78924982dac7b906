"""The laws are laws: each known way to break the library is noticed by the law that is for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inlay.laws import Broken, Case, NotApplicable
from inlay.laws.examination import examine
from tests import zoo
from tests.core import interfaces
from tests.laws.mutations import (
    MUTATIONS,
    Mutation,
    merged_before_refusing,
    packed_texts_taken_for_one,
)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with interfaces.registered():
        yield


@pytest.mark.parametrize(
    "mutation", MUTATIONS, ids=lambda m: f"{m.name}-{m.family}-{type(m.spec).__name__}"
)
def test_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(zoo.fresh(mutation.family), mutation.spec)
    if mutation.breaks in (merged_before_refusing, packed_texts_taken_for_one):
        with pytest.raises(NotApplicable, match="refused"):
            examine(mutation.law, case)
    else:
        examine(mutation.law, case)  # holds before the damage
    case = Case(zoo.fresh(mutation.family), mutation.spec)
    mutation.breaks(monkeypatch)
    with pytest.raises(Broken):
        examine(mutation.law, case)
