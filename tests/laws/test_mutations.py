"""The laws are laws: each known way to break the library is noticed by the law that is for it."""

from __future__ import annotations

from contextlib import suppress

import pytest

from inlay.laws import LAWS, Case, NotApplicable
from tests import zoo
from tests.laws.mutations import MUTATIONS, Mutation


@pytest.mark.parametrize(
    "mutation", MUTATIONS, ids=lambda m: f"{m.name}-{m.family}-{type(m.spec).__name__}"
)
def test_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(zoo.fresh(mutation.family), mutation.spec)
    with suppress(NotApplicable):
        LAWS[mutation.law](case)  # holds before the damage
    case = Case(zoo.fresh(mutation.family), mutation.spec)
    mutation.breaks(monkeypatch)
    with pytest.raises(Exception) as noticed:  # noqa: PT011  # a crash notices it as well
        LAWS[mutation.law](case)
    assert type(noticed.value).__name__ not in ("Beside", "NameError", "ImportError")
